"""Four steps equal two, a stop, and two more: bit for bit on a CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import run

CHANGES = {
    "all weights": {},
    "lora": {"lora": {"rank": 2, "alpha": 4}},
}


SHARE = "terms.distil.loss.target.share"
TARGET = {
    "name": "Interpolated",
    "view": "solution",
    "share": {"name": "Adaptive", "metric": "loss/distil", "start": 0.2, "rate": 1.0},
}
TERMS = {
    "distil": {"loss": {"name": "Distill", "target": TARGET, "divergence": "JSD"}},
    "reinforce": {"loss": "PolicyGradient"},
}

TEACHER = {
    "weights": {"name": "EMA", "decay": 0.9},
    "views": {"solution": "Solution"},
    "exposure": {"name": "BetaPolicy", "hold": 1, "look_ahead": 1, "decisions": 2},
}
PROBE = {"problems": 2, "answers": {"name": "Demonstrations", "read": "solution"}}


def rows(folder: Path, name: str) -> list[dict[str, object]]:
    """What a run logged, without what a clock decides."""
    logged = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    for row in logged:
        row.pop("seconds", None)
        for key in [key for key in row.get("metrics", {}) if "per_second" in key]:
            del row["metrics"][key]
    return logged


@pytest.mark.parametrize("model", CHANGES)
def test_a_resumed_run_is_the_same_run(tiny_model_dir: Path, tmp_path: Path, model: str) -> None:
    torch.set_num_threads(1)
    model_of = {"path": str(tiny_model_dir), **CHANGES[model]}
    changes = {"model": model_of, "terms": TERMS, "teacher": TEACHER, "probe": PROBE}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    summary = run(tiny_model_dir, whole, **changes)
    # What a run leaves that was killed after its second checkpoint, half way into the third step.
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "model")
    (parts / "summary.json").unlink()
    for step in (3, 4):
        shutil.rmtree(parts / "checkpoints" / f"step-{step:06d}")
    resumed = run(tiny_model_dir, parts, **changes)
    for name in ("held_out", "generated_tokens", "learner_tokens"):
        assert resumed[name] == summary[name]
    for file in ("metrics.jsonl", "rollouts.jsonl"):
        assert rows(parts, file) == rows(whole, file)
    want = load_file(whole / "model" / "model.safetensors")
    found = load_file(parts / "model" / "model.safetensors")
    assert want.keys() == found.keys()
    assert all(torch.equal(want[name], found[name]) for name in want)
    last = Path("checkpoints") / "step-000004"
    for state in sorted((whole / last).glob("*.pt")):
        if state.stem in ("learner", "parts"):
            assert same(torch.load(state), torch.load(parts / last / state.name))
    state = torch.load(whole / last / "parts.pt")
    assert state.keys() >= {"teacher.weights", "teacher.exposure", SHARE}
    assert state[SHARE]["value"] > 0.85
    assert state["teacher.exposure"]["policy"]["optimizer"]["state"], "no decision was learned from"


def same(first: Any, second: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second
