"""The log: every row survives a kill, no step stands twice, trackers never stop a run."""

from __future__ import annotations

import io
import json
import logging
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from opd.config import build, load_recipe
from opd.errors import DataError, OpdError, RecipeError
from opd.evaluation.evaluator import Measurement
from opd.log import Log, Spent, flat
from opd.recipe import Recipe
from opd.rows import read_rows
from opd.screen import Screen

METRICS = {
    "loss/distill": 0.25,
    "loss/policy": 0.5,
    "response_tokens": 34.25,
    "entropy": 0.4321,
    "success": 0.3,
    "generated_tokens_per_second": 1234.4,
}


def log_in(folder: Path, *overrides: str, main: bool = True) -> Log:
    tree = load_recipe("quickstart", [f"output={folder}", "steps=4", *overrides])
    rank = cast("Accelerator", SimpleNamespace(is_main_process=main))
    folder.mkdir(exist_ok=True)
    return Log(folder, rank, build(Recipe, tree))


def measured(accuracy: float) -> Measurement:
    return Measurement(
        benchmark="held_out",
        problems=100,
        samples=8,
        sampled=accuracy,
        ci95=(accuracy - 0.0625, accuracy + 0.0625),
        greedy=accuracy + 0.125,
        greedy_ci95=(accuracy - 0.125, accuracy + 0.25),
        mean_length=30.0,
        truncated=0.0,
        no_answer=0.0,
        no_verdict=0.0,
        entropy=0.5,
        by_problem=((3, 8),),
        signs={
            "pass@1": accuracy,
            "pass@8": 0.75,
            "response_tokens/p90": 41.0,
            "terminal_loops": 0.0,
        },
    )


def after(step: int) -> Spent:
    return Spent(step, 2.0 * step, 10 * step, 9 * step)


def run_steps(log: Log, first: int, last: int) -> None:
    """What a loop logs of the updates after `first` up to `last`, measured every second step."""
    for step in range(first, last):
        log.rollout({"step": step, "prompt_id": "a"})
        log.rollout({"step": step, "prompt_id": "b"})
        log.update(after(step + 1), METRICS)
        if step % 2:
            log.evaluation(after(step + 1), measured(0.5))


def test_rows_are_what_was_logged(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.evaluation(after(0), measured(0.25))
    run_steps(log, 0, 1)
    first, second = read_rows(tmp_path / "metrics.jsonl")
    assert first["kind"] == "evaluation" and first["benchmark"] == "held_out"
    assert (first["sampled"], first["greedy"]) == (0.25, 0.375)
    assert (first["ci95"], first["greedy_ci95"]) == ([0.1875, 0.3125], [0.125, 0.5])
    assert second == {
        "kind": "update",
        "step": 1,
        "seconds": 2.0,
        "generated_tokens": 10,
        "learner_tokens": 9,
        "metrics": METRICS,
    }
    assert [row["prompt_id"] for row in read_rows(tmp_path / "rollouts.jsonl")] == ["a", "b"]
    log.close()


def test_values_that_json_lacks_become_null(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.update(after(1), {"loss/a": float("nan"), "entropy": float("inf")})
    assert (tmp_path / "metrics.jsonl").read_text().count("null") == 2
    assert read_rows(tmp_path / "metrics.jsonl")[0]["metrics"] == {"loss/a": None, "entropy": None}


KILLED = """
import os, signal, sys
from pathlib import Path
from opd.rows import Rows
rows = Rows(Path(sys.argv[1]))
for step in range(1000):
    rows.add({"step": step, "text": "x" * 1000})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_keeps_every_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    died = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert [row["step"] for row in read_rows(path)] == list(range(1000))


def test_a_resumed_run_holds_each_step_once(tmp_path: Path) -> None:
    def stored() -> tuple[list[tuple[object, object]], list[object]]:
        metrics = [(row["kind"], row["step"]) for row in read_rows(tmp_path / "metrics.jsonl")]
        return metrics, [row["step"] for row in read_rows(tmp_path / "rollouts.jsonl")]

    log = log_in(tmp_path)
    log.evaluation(after(0), measured(0.25))
    run_steps(log, 0, 4)
    whole = stored()
    log.close()
    log = log_in(tmp_path)
    log.resume(2)
    run_steps(log, 2, 3)
    kept = [("evaluation", 0), ("update", 1), ("update", 2), ("evaluation", 2), ("update", 3)]
    assert stored() == (kept, [0, 0, 1, 1, 2, 2])
    run_steps(log, 3, 4)
    assert stored() == whole
    log.close()
    log = log_in(tmp_path)
    log.resume(4)
    log.evaluation(after(4), measured(0.5))
    assert stored() == whole
    log.close()
    log = log_in(tmp_path)
    run_steps(log, 0, 1)
    assert stored() == ([("update", 1)], [0, 0])


def test_a_torn_last_line_is_left_out_and_any_other_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "se')
    assert read_rows(path) == [{"step": 1}] and "last line was cut off" in caplog.text
    for bad in ('{"step": 1}\n{"step"\n{"step": 3}\n', '{"step": 1}\n[]\n', '{"step": 1}\n{}\n'):
        path.write_text(bad)
        with pytest.raises(DataError, match=re.escape(f"{path}, line 2: is no ")):
            read_rows(path)
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read.* folder of a run"):
        read_rows(tmp_path / "gone.jsonl")


def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OpdError, match=r"metrics\.jsonl: cannot be written \(File too large\)"):
            log.update(after(1), METRICS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = log_in(tmp_path, "trackers=[tensorboard]", main=False)
    log.resume(2)
    run_steps(log, 0, 4)
    log.summary({})
    log.close()
    assert not list(tmp_path.iterdir())


SUMMARY = {
    "name": "run",
    "held_out": {
        "before": 0.283,
        "after": 0.9,
        "ci95_before": [0.25, 0.31],
        "ci95_after": [0.88, 0.92],
        "greedy_before": 0.27,
        "greedy_after": 0.98,
        "samples": 8,
    },
    "generated_tokens": 163840,
    "seconds": 59.4,
}


def test_the_end_is_a_table_and_a_whole_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = log_in(tmp_path)
    log.summary(SUMMARY)
    assert json.loads((tmp_path / "summary.json").read_text()) == SUMMARY
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    shown = capsys.readouterr().out
    sampled, greedy = (line for line in shown.splitlines() if "held_out" in line)
    assert re.findall(r"[-+\d.]+", sampled.replace("avg@8", "")) == (
        ["28.3", "25.0", "31.0", "90.0", "88.0", "92.0", "+61.7"]
    )
    assert re.findall(r"[-+\d.]+", greedy) == ["27.0", "98.0", "+71.0"]
    assert "163,840 generated tokens, 59 seconds" in shown


def screen(steps: int, *, terminal: bool) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    return Screen("run", steps, Console(file=out, force_terminal=terminal, width=120)), out


def test_without_a_terminal_steps_are_plain_lines() -> None:
    plain, out = screen(4, terminal=False)
    plain.evaluation(0, 10.0, measured(0.25))
    for step in (1, 2):
        plain.update(step, 10.0 + 100.0 * step, METRICS)
    plain.close()
    assert out.getvalue().splitlines() == [
        "step 0  held_out: avg@8 25.0 % [18.8, 31.2], greedy 37.5 % [12.5, 50.0]; "
        "pass@8 75.0 %, entropy 0.500, 90 % within 41 tokens",
        "step 1/4  loss 0.7500  held_out 25.0 %  success 30.0 %  length 34.2  entropy 0.432"
        "  tokens/s 1,234  0:05:00 left",
        "step 2/4  loss 0.7500  held_out 25.0 %  success 30.0 %  length 34.2  entropy 0.432"
        "  tokens/s 1,234  0:03:20 left",
    ]


def test_a_long_run_prints_fifty_lines_and_its_last() -> None:
    plain, out = screen(1_001, terminal=False)
    for step in range(1, 1_002):
        plain.update(step, float(step), {})
    lines = out.getvalue().splitlines()
    assert len(lines) == 51 and lines[-1].startswith("step 1001/1001")


def test_on_a_terminal_one_block_is_redrawn() -> None:
    live, out = screen(4, terminal=True)
    live.evaluation(0, 10.0, measured(0.25))
    live.update(1, 110.0, METRICS)
    live.update(2, 210.0, METRICS)
    live.close()
    shown = out.getvalue()
    assert "\x1b[2A" in shown or "\x1b[1A" in shown, "the block is drawn over itself"
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "2/4  0:03:20 left" in text and re.search(r"0\.7500\s+25\.0 %\s+30\.0 %", text)


def test_tensorboard_follows(tmp_path: Path) -> None:
    log = log_in(tmp_path / "run", "trackers=[tensorboard]")
    run_steps(log, 0, 2)
    log.close()
    events = EventAccumulator(str(tmp_path / "run" / "run"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/distill")] == [(1, 0.25), (2, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("held_out/sampled")] == [(2, 0.5)]


class Unlucky(GeneralTracker):
    """A tracker whose server goes away after its first row."""

    name = "unlucky"
    requires_logging_directory = False
    calls = 0

    def __init__(self, run_name: str) -> None:
        super().__init__(_blank=True)

    def start(self) -> None: ...

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: object) -> None:
        Unlucky.calls += 1
        if step == 2:
            raise ConnectionError("no route to host")


def test_a_tracker_that_fails_is_dropped_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "unlucky", Unlucky)
    log = log_in(tmp_path, "trackers=[unlucky, tensorboard]")
    run_steps(log, 0, 4)
    log.close()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [w for w in warnings if "unlucky" in w] == [
        "the tracker unlucky fails (no route to host); the run goes on without it"
    ]
    assert Unlucky.calls == 2 and len(read_rows(tmp_path / "metrics.jsonl")) == 6


def test_a_tracker_that_is_not_installed_is_dropped_and_an_unknown_one_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = log_in(tmp_path, "trackers=[dvclive]")
    run_steps(log, 0, 1)
    assert "the tracker dvclive fails" in caplog.text
    with pytest.raises(RecipeError, match=r"trackers: 'wandbb' is no tracker; choose among aim"):
        log_in(tmp_path, "trackers=[wandbb]")


def test_settings_are_flattened() -> None:
    assert flat({"a": {"b": 1, "c": "x"}, "d": [1, 2], "e": None}) == {
        "a.b": 1,
        "a.c": "x",
        "d": "[1, 2]",
        "e": "None",
    }
