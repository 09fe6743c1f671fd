"""Short real runs on a random model and rows of the samples, for tests of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from opd.config import build, dump
from opd.loop import train
from opd.objective.term import Term
from opd.recipe import Recipe
from opd.teacher.weights import TeacherWeights

ROWS = "data/samples/gsm8k.jsonl"


def tree(folder: Path, output: Path, **changes: object) -> dict[str, Any]:
    """A recipe of a few steps; `changes` replace its top-level keys."""
    dataset = {"dataset": ROWS, "adapter": "data.gsm8k:problem"}
    solution = {"name": "Solution", "template": "$question $solution"}
    return {
        "model": {"path": str(folder)},
        "problems": dataset,
        "reward": "rewards.number:Number",
        "sampling": {"max_response_tokens": 12},
        "teacher": {
            "weights": {"name": "EMA", "decay": 0.9},
            "views": {"solution": solution},
        },
        "terms": {
            "distil": {"loss": {"name": "Distill", "target": "solution", "divergence": "JSD"}},
            "reinforce": {"loss": "PolicyGradient"},
        },
        "source": {"name": "OnPolicy", "rollouts_per_problem": 2},
        "optimizer": {"learning_rate": {"name": "Warmup", "peak": 1e-3, "warmup_steps": 2}},
        "steps": 4,
        "problems_per_step": 2,
        "benchmarks": {"held_out": dataset},
        "evaluation": {"samples": 2},
        "checkpoint": {"every": 1, "keep": 10},
        "log_rollouts_every": 1,
        "output": str(output),
        **changes,
    }


def run(folder: Path, output: Path, **changes: object) -> Mapping[str, Any]:
    """Train the recipe and return its summary."""
    return train(build(Recipe, tree(folder, output, **changes)))


def trained(
    folder: Path, output: Path, terms: Mapping[str, Term], weights: TeacherWeights, view: str
) -> dict[str, Tensor]:
    """The student after three steps on these terms, with a teacher of these weights that reads the
    solution as `view`."""
    views = {view: {"name": "Solution", "template": "$question $solution"}}
    run(
        folder,
        output,
        teacher={"weights": dump(weights), "views": views},
        terms=dump(terms),
        steps=3,
        benchmarks={},
        checkpoint={"every": 0},
    )
    return load_file(output / "model" / "model.safetensors")
