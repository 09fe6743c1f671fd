"""Every recipe trains two real steps on a CPU, on the data that it names where it is at hand."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from opd.config import RECIPES, ROOT, build, load_recipe, locate
from opd.loop import train
from opd.recipe import Recipe

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
BENCHMARKS = Path(os.environ.get("OPD_BENCHMARKS", ROOT.parent / "shared" / "benchmarks"))
SMALL = ("steps=2", "problems_per_step=4", "evaluation.every=0", "evaluation.samples=1")
ELSEWHERE = {
    "gkd": ("teacher.weights.path=data/tiny",),
}
"""What needs a GPU, a hub or an earlier run, replaced by what is here."""


@pytest.mark.parametrize("name", [name for name in NAMES if name != "opsd_gsm8k"])
def test_two_steps(name: str, tmp_path: Path) -> None:
    few = ("benchmarks.held_out.limit=4", "benchmarks.untouched.limit=4")
    trains([name, *SMALL, *few, *ELSEWHERE.get(name, ())], tmp_path / name)


def test_two_steps_on_real_rows(tmp_path: Path) -> None:
    """The recipe for one GPU, on real questions, with a random model in place of a real one."""
    if not BENCHMARKS.is_dir():
        pytest.skip(f"{BENCHMARKS} is not there; OPD_BENCHMARKS names the folder of the data")
    model = random_model(tmp_path / "model")
    changes = [
        f"model.path={model}",
        "model.thinking=null",
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


def random_model(folder: Path) -> Path:
    """A Qwen3 of random weights with room for real questions, spelled in bytes."""
    tokenizer = AutoTokenizer.from_pretrained(locate("data/tiny"))
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trains(arguments: list[str], output: Path) -> list[dict]:
    """Train two steps; the rows of the updates."""
    name, *changes = arguments
    summary = train(build(Recipe, load_recipe(name, [*changes, f"output={output}"])))
    assert summary["steps"] == 2
    assert math.isfinite(summary["held_out"]["after"])
    assert (output / "model" / "model.safetensors").exists()
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "update"]
