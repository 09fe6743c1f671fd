"""Runs of a study, one at a time; what is finished is left alone, what failed is told.

Beside the runs, `costs.jsonl` keeps what each took, on which commit and on what.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from opd.config import build
from opd.errors import RecipeError
from opd.recipe import Recipe
from opd.tree import first_difference, mapping_at, read_yaml

from .found import COSTS, is_finished, read_run
from .plan import SCRIPTS, Run, Study, runs, trials


def execute(study: Study) -> dict[str, str]:
    """Run all that is missing; the learning rate of each row that tries several, but for a row
    without a finished trial."""
    for row in study.rows:
        for run in trials(study, row):
            start(run)
    rates = chosen_rates(study)
    for run in runs(study, rates):
        if not study.rows[run.row].learning_rates or run.learning_rate:
            start(run)
    return rates


def chosen_rates(study: Study) -> dict[str, str]:
    """The rate of the trial with the highest held-out accuracy at any evaluation."""
    rates: dict[str, str] = {}
    for row in study.rows:
        tried = [read_run(run) for run in trials(study, row) if is_finished(run)]
        if tried:
            best = max(tried, key=lambda found: found.best.sampled)
            rates[row] = best.run.learning_rate
    return rates


def start(run: Run) -> None:
    """Train to the end, unless that has been done. A run that fails keeps its log and is no fault
    of the others. Raises RecipeError when the folder holds a run with other settings."""
    if is_finished(run):
        refuse_another(run)
        return
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with log_of(run).open("w") as log:
        for path, command in run.made:
            if not path.exists() and costing(run, path.name, command, log):
                break
        else:
            costing(run, run.folder.name, run.command, log)
    if last := fault(run):
        print(f"{run.folder.name}: failed: {last}")


def costing(run: Run, name: str, command: Sequence[str], log: TextIO) -> int:
    """The exit status of a command whose cost is printed and kept under `name`."""
    began, worked = time.perf_counter(), processor_seconds()
    status = called(command, log)
    took, work = time.perf_counter() - began, processor_seconds() - worked
    print(f"{name}: {took:.0f} s, {work:.0f} s of one core", flush=True)
    row = {"name": name, "seconds": took, "core_seconds": work, **circumstances()}
    with (run.folder.parent / COSTS).open("a") as costs:
        costs.write(json.dumps(row) + "\n")
    return status


def called(command: Sequence[str], log: TextIO) -> int:
    """The exit status of a command that finds `opd`, `data` and `rewards` where this repository is
    not installed too."""
    paths = [str(SCRIPTS.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False
    )
    return done.returncode


def circumstances() -> dict[str, object]:
    """The commit, marked where files differ from it, and what it runs on."""
    describe = ["git", "-C", str(SCRIPTS), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    processor = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "commit": commit or "none",
        "processor": processor.group(1) if processor else platform.machine(),
        "cores": os.cpu_count(),
    }


def processor_seconds() -> float:
    """Of all runs so far: what a run costs, whatever else the machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def log_of(run: Run) -> Path:
    return run.folder.with_suffix(".log")


def fault(run: Run) -> str:
    """The last line that a run without an end has said; nothing where it has not run."""
    if is_finished(run) or not log_of(run).exists():
        return ""
    lines = [line for line in log_of(run).read_text().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def refuse_another(run: Run) -> None:
    """Raise RecipeError where a finished run's recipe is not the planned one; a key that is newer
    than the run had its default."""
    text = (run.folder / "recipe.yaml").read_text()
    stored = mapping_at(read_yaml(text, str(run.folder)), str(run.folder))
    trainer = {"trainer": stored.pop("trainer")} if "trainer" in stored else {}
    then = {**build(Recipe, stored).tree, **trainer}
    planned = {**run.tree, "output": then["output"]}
    difference = first_difference(then, planned)
    if difference is not None:
        place, then, now = difference
        raise RecipeError(
            f"{run.folder}: holds a run with {place}={then}, and the study has {place}={now}; "
            "give the study another output, or delete the folder"
        )
