"""Break one line at a time and see that a test notices.

Each row of mutations.yaml changes one place in a copy of the tree and names the tests that must go
red. Exits 1 when any stays green or no longer applies.

    python scripts/mutate.py            # all
    python scripts/mutate.py learner    # rows whose file or text holds the word
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache", ".hypothesis")


def first_red(tree: Path, tests: list[str]) -> str | None:
    """The first test that fails in `tree`, None when all pass."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", *tests]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    red = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return red[0].split(" - ")[0] if red else f"pytest exited {done.returncode}"


def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    rows = yaml.safe_load((ROOT / "scripts" / "mutations.yaml").read_text())
    rows = [row for row in rows if wanted in row["file"] or wanted in row["from"]]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        for row in rows:
            path = tree / row["file"]
            sound = path.read_text()
            if sound.count(row["from"]) != 1:
                found: str | None = None
                verdict = "DOES NOT APPLY"
            else:
                path.write_text(sound.replace(row["from"], row["to"]))
                found = first_red(tree, row["tests"].split())
                verdict = "red  " if found else "GREEN"
                path.write_text(sound)
            survivors += found is None
            change = f"{row['from'].strip()}  ->  {row['to'].strip() or 'nothing'}"
            print(f"{verdict} {row['file']}: {' '.join(change.split())}", flush=True)
            print(f"      {found or '-'}", flush=True)
    print(f"{len(rows)} mutations, {survivors} survived")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
