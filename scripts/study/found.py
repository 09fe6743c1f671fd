"""What runs found: curves from their own files, read at a budget, and tokens to an accuracy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd.rows import read_rows

from .plan import Budget, Run, Unit

Problems = tuple[tuple[int, int], ...]
"""Responses that passed and that were judged, problem by problem."""

COSTS = "costs.jsonl"

OVER = 1.05
"""By how much a run may pass a budget and still be read there: steps are planned, tokens drawn."""


@dataclass(frozen=True)
class Point:
    """One evaluation of one benchmark."""

    step: int
    generated_tokens: int
    learner_tokens: int
    seconds: float
    """Of training alone."""
    sampled: float
    low: float
    """Lower end of the 95 % interval over problems."""
    greedy: float
    length: float
    entropy: float
    truncated: float
    by_problem: Problems

    def spent(self, unit: Unit) -> float:
        return getattr(self, unit)


@dataclass(frozen=True)
class Found:
    """A finished run."""

    run: Run
    curves: Mapping[str, tuple[Point, ...]]
    """Benchmark to its evaluations."""

    def at(self, budget: Budget, benchmark: str = "held_out") -> Point:
        """The last evaluation within the budget."""
        within = [
            point
            for point in self.curves[benchmark]
            if point.spent(budget.unit) <= OVER * budget.amount
        ]
        return within[-1]

    @property
    def best(self) -> Point:
        """The highest held-out evaluation; the earliest of several."""
        return max(self.curves["held_out"], key=lambda point: point.sampled)

    def reached(self, accuracy: float, unit: Unit) -> tuple[float, float] | None:
        """Between which amounts `accuracy` was reached: of the evaluation before it and of its own;
        None where it was not."""
        before = 0.0
        for point in self.curves["held_out"]:
            spent = self.spent(point, unit)
            if point.sampled >= accuracy:
                return before, spent
            before = spent
        return None

    def spent_to(self, accuracy: float, unit: Unit = "generated_tokens") -> float:
        """Spent before the first evaluation at or above `accuracy`; infinite if there is none."""
        found = self.reached(accuracy, unit)
        return math.inf if found is None else found[1]

    @property
    def last(self) -> Point:
        return self.curves["held_out"][-1]

    def spent(self, point: Point, unit: Unit = "generated_tokens") -> float:
        """Before `point`; a run that generates no tokens counts those that it learns."""
        generates = unit != "generated_tokens" or self.last.generated_tokens
        return point.spent(unit if generates else "learner_tokens")


def costs(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Run, or what was made for one, to what it last took and under which circumstances."""
    path = folder / COSTS
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["name"]: row for row in rows}


def is_finished(run: Run) -> bool:
    return (run.folder / "summary.json").exists()


def read_run(run: Run) -> Found:
    """The curves of a finished run."""
    curves: dict[str, list[Point]] = {}
    kept = read_rows(run.folder / "metrics.jsonl")
    rows = [row for row in kept if row["kind"] in ("update", "evaluation")]
    for row, seconds in zip(rows, training_seconds(rows), strict=True):
        if row["kind"] == "evaluation":
            curves.setdefault(str(row["benchmark"]), []).append(point_of(row, seconds))
    return Found(run, {name: tuple(points) for name, points in curves.items()})


def point_of(row: Mapping[str, Any], seconds: float) -> Point:
    return Point(
        step=row["step"],
        generated_tokens=row["generated_tokens"],
        learner_tokens=row["learner_tokens"],
        seconds=seconds,
        sampled=row["sampled"],
        low=row["ci95"][0],
        greedy=row["greedy"],
        length=row["mean_length"],
        entropy=row["entropy"],
        truncated=row["truncated"],
        by_problem=tuple((passed, judged) for passed, judged in row["by_problem"]),
    )


def training_seconds(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """At each row the seconds so far without those of evaluations, which a row's total includes."""
    spent = before = 0.0
    found: list[float] = []
    for row in rows:
        if row["kind"] == "update":
            spent += row["seconds"] - before
        before = row["seconds"]
        found.append(spent)
    return found


def shares(problems: Problems) -> list[float]:
    """The share of each problem's judged responses that passed; NaN where none was judged."""
    return [passed / judged if judged else math.nan for passed, judged in problems]


def spread(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def summary_of(run: Run) -> Mapping[str, Any]:
    return json.loads((run.folder / "summary.json").read_text())
