"""Two evaluations side by side, on the same problems, seeds and protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opd.errors import RecipeError
from opd.evaluation.collect import Task
from opd.evaluation.folder import write_once
from opd.evaluation.paired import Paired, paired
from opd.evaluation.score import Score, successes
from opd.evaluation.transcript import Kind, Sample
from opd.tree import first_difference

SHARED = ("seed", "thinking", "benchmarks")
"""Keys of the protocols in which two models that are compared must agree."""
TOLD = ("engine", "chunk", "max_length", "versions")
"""Keys in which they may differ, which is then said."""


@dataclass(frozen=True)
class Evaluation:
    """A model on a suite, finished."""

    name: str
    folder: Path
    protocol: Mapping[str, Any]
    tasks: Mapping[str, Task]
    samples: Mapping[str, list[Sample]]
    scores: Mapping[str, Score]
    """The last three by benchmark."""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same problems, seeds and protocol."""

    model: Evaluation
    against: Evaluation
    measures: Mapping[str, Mapping[str, Paired | None]]
    """Benchmark to measure (`avg@k`, `greedy`) to what is found; None without common problems."""
    unlike: tuple[str, ...]
    """Keys of the protocols, besides the model, in which the two differ."""


def compare(model: Evaluation, against: Evaluation, to: Path) -> Comparison:
    """Test the difference between two evaluations, and keep what is found in `to`.

    Raises RecipeError when they are not of the same problems, seeds, sampling and budget.
    """
    for key in SHARED:
        difference = first_difference(against.protocol[key], model.protocol[key], key)
        if difference is not None:
            place, theirs, mine = difference
            raise RecipeError(
                f"{model.name} is measured with {place}={mine} and {against.name} with "
                f"{place}={theirs}; set what both can do"
            )
    unlike = tuple(key for key in TOLD if model.protocol[key] != against.protocol[key])
    measures = {name: measured(name, model, against) for name in model.scores}
    found = Comparison(model, against, measures, unlike)
    write_once(to, as_json(found))
    return found


def measured(name: str, model: Evaluation, against: Evaluation) -> dict[str, Paired | None]:
    task = model.tasks[name]
    kinds: dict[str, Kind] = {f"avg@{task.samples}": "sampled"}
    if task.greedy:
        kinds["greedy"] = "greedy"
    return {
        label: paired(successes(model.samples[name], kind), successes(against.samples[name], kind))
        for label, kind in kinds.items()
    }


def as_json(found: Comparison) -> dict[str, object]:
    return {
        "model": found.model.protocol["model"],
        "against": found.against.protocol["model"],
        "unlike": list(found.unlike),
        "benchmarks": {
            name: {label: asdict(row) if row else None for label, row in rows.items()}
            for name, rows in found.measures.items()
        },
    }
