"""The benchmark of the loss, on the small head and without the peers that are not installed."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_quick_loss_benchmark(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "scripts/bench/loss.py", "--quick"),
            *("--implementations", "opd", "naive", "--results", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "loss_quick.json").read_text())
    bars = {bar["name"]: bar for bar in found["bars"]}
    assert len(bars) == 6 and all(bar["holds"] for bar in bars.values())
    # The naive loss must be seen to fail where rounding hurts, or the error measures nothing.
    near = found["scenarios"]["accuracy: bfloat16, 256 rows, teacher near the student"]
    assert near["naive"]["dh_error"] > 0.3 > 0.02 > near["opd"]["dh_error"]
