"""What a run leaves to read: its files, the lines on the screen, and trackers that follow."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from opd.config import dump
from opd.errors import DataError, OpdError, RecipeError
from opd.screen import Screen

if TYPE_CHECKING:
    from accelerate import Accelerator

    from opd.evaluation.evaluator import Measurement
    from opd.recipe import Recipe

Row = dict[str, object]

logger = logging.getLogger(__name__)


class Log:
    """The files metrics.jsonl, rollouts.jsonl and summary.json of a run, its screen and trackers.

    Only the main process writes. A row is on disk when its method returns, so that a killed run
    keeps everything up to then. Rows after the step from which a run goes on are dropped at the
    first write: no step stands twice.
    """

    def __init__(self, output: Path, accelerator: Accelerator, recipe: Recipe) -> None:
        self.output = output
        self.main = accelerator.is_main_process
        self.screen = Screen(output.name, recipe.steps)
        self.trackers = Trackers(recipe.trackers if self.main else (), output, dump(recipe))
        self.metrics = Rows(output / "metrics.jsonl")
        self.rollouts = Rows(output / "rollouts.jsonl")

    def resume(self, step: int) -> None:
        """Go on after `step` updates."""
        if self.main:
            self.metrics.before = step + 1
            self.rollouts.before = step  # step n draws its rollouts after n updates
            self.screen.say(f"goes on after step {step}")

    def update(
        self, step: int, seconds: float, generated_tokens: int, metrics: Mapping[str, float]
    ) -> None:
        """Log one optimizer step, already summed over ranks; `seconds` and tokens are totals."""
        if not self.main:
            return
        row = {"step": step, "seconds": seconds, "generated_tokens": generated_tokens}
        self.metrics.add({"kind": "update", **row, "metrics": dict(metrics)})
        self.screen.update(step, seconds, metrics)
        self.trackers.log(metrics, step)

    def evaluation(
        self, step: int, seconds: float, generated_tokens: int, measurement: Measurement
    ) -> None:
        """Log one benchmark's accuracies after `step` updates."""
        if not self.main:
            return
        row = {"step": step, "seconds": seconds, "generated_tokens": generated_tokens}
        self.metrics.add({"kind": "evaluation", **row, **asdict(measurement)})
        self.screen.evaluation(step, seconds, measurement)
        name = measurement.benchmark
        accuracies = {f"{name}/sampled": measurement.sampled, f"{name}/greedy": measurement.greedy}
        self.trackers.log(accuracies, step)

    def rollout(self, row: Row) -> None:
        """Keep one rollout with what student and teachers think of its tokens."""
        if self.main:
            self.rollouts.add(row)

    def summary(self, summary: Mapping[str, object]) -> None:
        """Write summary.json at once or not at all, and show it."""
        if not self.main:
            return
        replace_file(self.output / "summary.json", json.dumps(finite(dict(summary)), indent=2))
        self.screen.summary(summary)

    def close(self) -> None:
        """Give the screen back and let the trackers finish."""
        self.screen.close()
        self.trackers.close()
        self.metrics.close()
        self.rollouts.close()


class Rows:
    """A JSON Lines file that goes on where a run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = 0
        """Rows of earlier steps are kept; 0 when the run starts afresh."""
        self._measured: set[tuple[object, object]] = set()
        self._file: TextIO | None = None

    def add(self, row: Row) -> None:
        """Append `row`, unless it measures a benchmark at a step that was measured already."""
        with writing(self.path):
            file = self._file or self._open()
            if (row["step"], row.get("benchmark")) not in self._measured:
                file.write(json.dumps(finite(row), ensure_ascii=False) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self) -> TextIO:
        old = read_rows(self.path) if self.path.exists() else []
        kept = [row for row in old if cast("int", row["step"]) < self.before]
        self._measured = {(row["step"], row["benchmark"]) for row in kept if "benchmark" in row}
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        replace_file(self.path, text)
        self._file = self.path.open("a", buffering=1, encoding="utf-8")
        return self._file


class Trackers:
    """Followers of a run, through accelerate: each is dropped with one warning when it fails."""

    def __init__(self, names: tuple[str, ...], output: Path, settings: object) -> None:
        """Raise RecipeError for a name that accelerate does not know."""
        self.running: dict[str, GeneralTracker] = {}
        for name in names:
            if name not in LOGGER_TYPE_TO_CLASS:
                known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
                raise RecipeError(f"trackers: {name!r} is no tracker; choose among {known}")
            self._start(name, output, settings)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of a step."""
        self._tell(lambda tracker: tracker.log(dict(values), step=step))

    def close(self) -> None:
        self._tell(lambda tracker: tracker.finish())
        self.running = {}

    def _start(self, name: str, output: Path, settings: object) -> None:
        kind = LOGGER_TYPE_TO_CLASS[name]
        place = {"logging_dir": str(output)} if kind.requires_logging_directory else {}
        try:
            tracker = kind(output.name, **place)
            tracker.start()
            tracker.store_init_configuration(flat(settings))
        except Exception as error:
            self._drop(name, error)
        else:
            self.running[name] = tracker

    def _tell(self, message: Callable[[GeneralTracker], object]) -> None:
        for name, tracker in list(self.running.items()):
            try:
                message(tracker)
            except Exception as error:
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        """Whatever a tracker raises, the run is worth more, and its own files are complete."""
        self.running.pop(name, None)
        logger.warning("the tracker %s fails (%s); the run goes on without it", name, error)


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON Lines file; a last line that a crash cut off is left out.

    Raises DataError that names the file and the line when it is missing or malformed.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); is this the folder of a run?"
        ) from error
    whole, torn = lines[:-1], lines[-1]
    if torn:
        logger.warning("%s: the last line was cut off and is left out", path)
    return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(whole, 1)]


def _parsed(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: is no JSON ({error}); delete the line") from error
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise DataError(f"{place}: is no object with a whole number `step`; delete the line")
    return row


def replace_file(path: Path, text: str) -> None:
    """Write `path` so that a crash leaves the old file or the new one."""
    staging = path.with_name(f".{path.name}")
    with writing(path), staging.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into one sentence."""
    try:
        yield
    except OSError as error:
        raise OpdError(
            f"{path}: cannot be written ({error.strerror}); free some disk, then run the same "
            f"command to go on from the last checkpoint"
        ) from error


def finite(value: object) -> object:
    """`value` for JSON, which knows no NaN and no infinity: these become null."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def flat(tree: object, where: str = "") -> dict[str, str | int | float | bool]:
    """A tree of settings as one level of dotted names."""
    if isinstance(tree, Mapping):
        parts = [flat(item, f"{where}.{key}" if where else str(key)) for key, item in tree.items()]
        return {name: value for found in parts for name, value in found.items()}
    return {where: tree if isinstance(tree, str | int | float) else str(tree)}
