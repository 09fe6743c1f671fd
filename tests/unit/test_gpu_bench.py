"""scripts/bench/gpu.py, whole, where there is no GPU: it runs to its end and claims nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = "scripts/bench/gpu.py"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env={**os.environ, "PYTHONPATH": ".", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_trial_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    written = tmp_path / "gpu.json"
    done = run("--device", "cpu", "--shapes", "tiny", "--to", str(written), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(written.read_text())
    assert found["failed"] == [] and found["dropped"] == []
    assert {bar["holds"] for bar in found["bars"]} == {None}, "a CPU says nothing about a GPU"
    for name in ("opd", "opd compiled"):
        assert found["accuracy"][name]["far jsd"] < 0.03, "bfloat16 rounding and no more"
        assert all(name in case["costs"] for case in found["losses"])
    assert len(found["steps"]) >= 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_refuses_without_a_gpu() -> None:
    done = run()
    assert done.returncode == 1
    assert done.stderr.startswith("gpu: no CUDA device is here; ")
    assert done.stderr.count("\n") == 1
