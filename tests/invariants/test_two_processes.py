"""Two processes do what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.students import distance

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def launch(processes: int, script: str, *arguments: Path) -> None:
    """Run a script of this folder in so many processes that talk through gloo."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher, str(HERE / script), *map(str, arguments)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_processes_give_the_gradients_of_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        to = tmp_path / f"{processes}.safetensors"
        launch(processes, "rank_gradients.py", tiny_model_dir, to)
        found.append(load_file(to))
    one, two = found
    gradients = [{n: t for n, t in each.items() if ":" not in n} for each in found]
    assert distance(*gradients) < 1e-6
    for name in (name for name in one if name.startswith("metric:")):
        assert abs(float(one[name] - two[name])) < 1e-4, name


def test_two_processes_train_like_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    """An odd number of problems, sampled, judged, learned and measured in shares."""
    for processes in (1, 2):
        launch(processes, "rank_train.py", tiny_model_dir, tmp_path / str(processes))
    one, two = (
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in "12"
    )
    assert len(one) == len(two)
    for alone, shared in zip(one, two, strict=True):
        assert alone["generated_tokens"] == shared["generated_tokens"]
        for name, value in alone.get("metrics", alone).items():
            if "second" not in name and isinstance(value, float):
                found = shared.get("metrics", shared)[name]
                assert found == pytest.approx(value, abs=1e-3), name
    weights = [load_file(tmp_path / n / "model" / "model.safetensors") for n in "12"]
    assert all((weights[0][n] - weights[1][n]).abs().max() < 1e-3 for n in weights[0])
