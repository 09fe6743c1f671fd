"""Every recipe trains two real steps on a CPU, on the data that it names where it is at hand."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from opd.cli import main
from opd.config import RECIPES, ROOT, build, load_recipe, locate
from opd.loop import train
from opd.recipe import Recipe
from tests.conftest import save_random_model

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
BENCHMARKS = Path(os.environ.get("OPD_BENCHMARKS", ROOT.parent / "shared" / "benchmarks"))
SMALL = ("steps=2", "problems_per_step=4", "evaluation.every=0", "evaluation.samples=1")
ELSEWHERE = {
    **dict.fromkeys(
        (
            "distilled_rl",
            "exopd",
            "gkd",
            "kdrl",
            "reopold",
            "tmopd",
            "tmopd_discounted",
            "uld",
            "uld_hybrid",
            "uld_observed",
        ),
        ("teacher.weights.path=data/tiny",),
    ),
    "dasd": ("source.of.path={stored}/rollouts.jsonl", "source.student={stored}/scores"),
    **dict.fromkeys(
        ("distillm2", "distillm2_gradual"),
        ("source.second.path={stored}/rollouts.jsonl", "teacher.weights.path=data/tiny"),
    ),
    "lightning": (
        "source.path={stored}/rollouts.jsonl",
        "teacher.weights.path={stored}/scores",
    ),
    "minillm": ("teacher.weights.path=data/tiny",),
    "sdfpt": ("teacher.weights.path=data/tiny",),
    "tmopd_routed": (
        "teacher.weights.path=data/tiny",
        "teacher.weights_by_view.skills.path=data/tiny",
        "benchmarks.skills.limit=4",
    ),
    "rft": ("source.path={stored}/rollouts.jsonl",),
    "sdzero": ("model.path=data/tiny",),
    "sdzero_revise": tuple(
        f"source.{side}.{read}.path={{stored}}/rollouts.jsonl"
        for side in ("first", "second")
        for read in ("of", "answers")
    ),
    "soda": (
        "model.path=data/tiny",
        "source.first.path={stored}/rollouts.jsonl",
        "source.second.path={stored}/rollouts.jsonl",
    ),
    "seqkd": ("source.path={stored}/rollouts.jsonl",),
    "sdpo_one_problem": ("problems_per_step=1",),
    "paced": ("problems.limit=16",),
    "paced_filtered": ("problems.limit=48",),
    "paced_once": ("problems.limit=16",),
    "paced_staged": ("problems.limit=16",),
}
"""What needs a GPU, a hub or an earlier run, replaced by what is here, and what measures all of its
problems first, given few."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands before a run have left, of a few problems."""
    folder = tmp_path_factory.mktemp("stored")
    sampled = ["sample", "grpo", "source.rollouts_per_problem=4", "--problems", "12"]
    rollouts, scores = str(folder / "rollouts.jsonl"), str(folder / "scores")
    assert main([*sampled, "--to", rollouts]) == 0
    scored = ["score", "lightning", "teacher.weights=Frozen", "--rollouts", rollouts]
    assert main([*scored, "--to", scores]) == 0
    return folder


@pytest.mark.parametrize("name", [name for name in NAMES if name != "opsd_gsm8k"])
def test_two_steps(name: str, tmp_path: Path, stored: Path) -> None:
    few = ("benchmarks.held_out.limit=4", "benchmarks.untouched.limit=4")
    here = (change.format(stored=stored) for change in ELSEWHERE.get(name, ()))
    trains([name, *SMALL, *few, *here], tmp_path / name)


def test_two_steps_on_real_rows(tmp_path: Path) -> None:
    """The recipe for one GPU, on real questions, with a random model in place of a real one."""
    if not BENCHMARKS.is_dir():
        pytest.skip(f"{BENCHMARKS} is not there; OPD_BENCHMARKS names the folder of the data")
    tokenizer = AutoTokenizer.from_pretrained(locate("data/tiny"))
    model = save_random_model(tmp_path / "model", tokenizer, context_length=8192)
    changes = [
        f"model.path={model}",
        "model.thinking=null",
        "teacher.thinking=null",
        f"problems.dataset={BENCHMARKS / 'gsm8k_train.jsonl'}",
        f"benchmarks.held_out.dataset={BENCHMARKS / 'gsm8k_test.jsonl'}",
        "benchmarks.held_out.limit=4",
        "sampling.max_response_tokens=16",
        "evaluation.sampling.max_response_tokens=16",
        "engine=hf",
        # bfloat16 rounds more on a CPU, and a random model has more to round
        "sync_tolerance=0.5",
    ]
    rows = trains(["opsd_gsm8k", *SMALL, *changes], tmp_path / "run")
    assert all(row["metrics"]["teacher_present/solution"] == 1.0 for row in rows)
    assert all(row["metrics"]["loss/distil"] > 0 for row in rows)


def trains(arguments: list[str], output: Path) -> list[dict]:
    """Train two steps; the rows of the updates."""
    name, *changes = arguments
    summary = train(build(Recipe, load_recipe(name, [*changes, f"output={output}"])))
    assert summary["steps"] == 2
    assert math.isfinite(summary["held_out"]["after"])
    assert (output / "model" / "model.safetensors").exists()
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    updates = [row for row in rows if row["kind"] == "update"]
    for row in updates:
        measured = row["metrics"]
        for key, share in measured.items():
            kind, _, view = key.partition("/")
            if kind == "teacher_present" and share:
                assert f"teacher_gap/{view}" in measured, f"nothing tells how far {view} is"
                assert f"teacher_entropy/{view}" in measured
    return updates
