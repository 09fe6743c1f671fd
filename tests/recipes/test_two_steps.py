"""Every recipe trains two real steps on a CPU, on the data that it names where it is at hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from opd.config import RECIPES, build, load_recipe
from opd.loop import train
from opd.recipe import Recipe

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
SMALL = ("steps=2", "problems_per_step=4", "evaluation.every=0", "evaluation.samples=1")
ELSEWHERE = {
    "gkd": ("teacher.weights.path=data/tiny",),
    "opsd_gsm8k": (
        "problems.dataset=data/samples/gsm8k.jsonl",
        "problems.subset=null",
        "benchmarks.held_out.dataset=data/samples/gsm8k.jsonl",
        "benchmarks.held_out.subset=null",
        "sampling.max_response_tokens=16",
        "evaluation.sampling.max_response_tokens=16",
        "model.thinking=null",
        "max_length=null",
        "sync_tolerance=0.3",
        "engine=hf",
    ),
}
"""What needs a GPU, a hub or an earlier run, replaced by what is here."""


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(name: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    changes = [*SMALL, *ELSEWHERE.get(name, ()), f"output={tmp_path / name}"]
    if name == "opsd_gsm8k":
        changes.append(f"model.path={tiny_model_dir}")
    else:
        changes += ["benchmarks.held_out.limit=4", "benchmarks.untouched.limit=4"]
    summary = train(build(Recipe, load_recipe(name, changes)))
    assert summary["steps"] == 2
    assert math.isfinite(summary["held_out"]["after"])
    assert (tmp_path / name / "model" / "model.safetensors").exists()
