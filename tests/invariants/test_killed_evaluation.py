"""An evaluation that is killed twenty times ends as one that was left in peace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROBLEMS = 24


def suite(folder: Path) -> Path:
    """Two small benchmarks of the embedded model's own problems."""
    entry = {"adapter": "data.tiny:problem", "limit": PROBLEMS}
    tree = {
        "reward": "rewards.exact:Exact",
        "sampling": {"max_response_tokens": 24, "temperature": 1.0},
        "samples": 3,
        "greedy": True,
        "chunk": 3,
        "benchmarks": {
            name: {"dataset": f"data/tiny/{name}.jsonl", **entry}
            for name in ("held_out", "untouched")
        },
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    peaceful, killed = tmp_path / "peaceful", tmp_path / "killed"
    finished = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("killed_evaluation.py")),
            *map(str, (suite(tmp_path), peaceful, killed, 0)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    ends = [line.split(" ", 1)[1] for line in finished.stdout.splitlines()]
    assert ends == ["killed"] * 20 + ["exit 0"], finished.stdout + finished.stderr
    names = ("protocol.json", "samples.jsonl", "summary.json")
    for name in names:
        assert (killed / name).read_bytes() == (peaceful / name).read_bytes(), name
    assert {path.name for path in killed.iterdir()} - {".lock"} == set(names)
    rows = [json.loads(line) for line in (killed / "samples.jsonl").read_text().splitlines()]
    keys = [(row["benchmark"], row["kind"], row["problem"], row["sample"]) for row in rows]
    assert len(keys) == len(set(keys)) == 2 * PROBLEMS * (3 + 1)
    found = json.loads((killed / "summary.json").read_text())["benchmarks"]["held_out"]
    right = [r["status"] == "pass" for r in rows if r["benchmark"] == "held_out"]
    assert found["problems"] == PROBLEMS and 0 < sum(right) < len(right)
