"""Two processes give the gradients and the metrics of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tests.students import distance

SCRIPT = Path(__file__).with_name("rank_gradients.py")
ROOT = SCRIPT.parents[2]


def run(processes: int, folder: Path, to: Path) -> dict[str, Tensor]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launch, str(SCRIPT), str(folder), str(to)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(to)


def test_two_processes_equal_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    one = run(1, tiny_model_dir, tmp_path / "one.safetensors")
    two = run(2, tiny_model_dir, tmp_path / "two.safetensors")
    gradients = [{n: t for n, t in found.items() if ":" not in n} for found in (one, two)]
    assert distance(*gradients) < 1e-6
    for name in (name for name in one if name.startswith("metric:")):
        assert abs(float(one[name] - two[name])) < 1e-4, name
