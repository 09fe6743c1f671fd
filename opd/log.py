"""What a run leaves to read: its files, the lines on the screen, and trackers that follow."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from opd.config import dump
from opd.errors import RecipeError
from opd.rows import Row, Rows, finite, replace_file
from opd.screen import Screen

if TYPE_CHECKING:
    from accelerate import Accelerator

    from opd.evaluation.evaluator import Measurement
    from opd.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spent:
    """What a run has taken so far, over all ranks and all sessions."""

    step: int
    """Optimizer steps done."""
    seconds: float
    """Of training and evaluation."""
    generated_tokens: int
    """Drawn for training."""
    learner_tokens: int
    """Response tokens that entered an update."""


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

    def warn(self, step: int, text: str) -> None:
        """Say what is wrong after `step` updates, and keep it."""
        if self.main:
            self.metrics.add({"kind": "warning", "step": step, "text": text})
            self.screen.say(f"step {step}  {text}")

    def go_back(self, step: int, time: int) -> None:
        """Go on after `step` updates again; what was logged since is kept beside, `time` counts."""
        if not self.main:
            return
        for name in ("metrics", "rollouts"):
            rows: Rows = getattr(self, name)
            rows.close()
            if rows.path.exists():
                copyfile(rows.path, rows.path.with_name(f"{name}-before-rollback-{time}.jsonl"))
            setattr(self, name, Rows(rows.path))
        self.resume(step)

    def update(self, spent: Spent, metrics: Mapping[str, float]) -> None:
        """Log one optimizer step, already summed over ranks."""
        if not self.main:
            return
        self.metrics.add({"kind": "update", **asdict(spent), "metrics": dict(metrics)})
        self.screen.update(spent.step, spent.seconds, metrics)
        self.trackers.log(metrics, spent.step)

    def evaluation(self, spent: Spent, measurement: Measurement) -> None:
        """Log one benchmark's accuracies after the updates that `spent` tells of."""
        if not self.main:
            return
        self.metrics.add({"kind": "evaluation", **asdict(spent), **asdict(measurement)})
        self.screen.evaluation(spent.step, spent.seconds, measurement)
        self.trackers.log(measurement.readings, spent.step)

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


def flat(tree: object, where: str = "") -> dict[str, str | int | float | bool]:
    """A tree of settings as one level of dotted names."""
    if isinstance(tree, Mapping):
        parts = [flat(item, f"{where}.{key}" if where else str(key)) for key, item in tree.items()]
        return {name: value for found in parts for name, value in found.items()}
    return {where: tree if isinstance(tree, str | int | float) else str(tree)}
