"""What a study runs: rows by seeds, each a command whose run can be taken up again."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from opd.config import build, load_recipe, part
from opd.errors import RecipeError
from opd.recipe import Recipe
from opd.tree import read_yaml

SCRIPTS = Path(__file__).resolve().parents[1]
BASELINES = {"trl_grpo": "grpo", "trl_sft": "sft", "trl_sdft": "sdft", "trl_sdpo": "sdpo"}
"""Scripts of scripts/baselines and the recipe whose settings each takes."""

OPD = (sys.executable, "-m", "opd")

Unit = Literal["generated_tokens", "learner_tokens", "seconds"]


@part
class Budget:
    """How much each run may take before it is read."""

    amount: Annotated[float, Field(gt=0)]
    unit: Unit = "generated_tokens"
    """`seconds` are of training; a row then needs `steps` among its settings."""


@part
class Row:
    """One method with its settings."""

    recipe: str
    """A recipe, or a script of scripts/baselines such as `trl_grpo`."""
    settings: tuple[str, ...] = ()
    """key=value; `{output}` stands for the study's folder of runs."""
    learning_rates: tuple[str, ...] = ()
    """Tried with the first seed; the one with the highest held-out accuracy is the row's."""
    made: dict[str, str] = field(default_factory=dict)
    """What the row stands on and the arguments of `opd` that make it, in this order and once for
    all seeds: path to command, with `{output}` in both."""


@part
class Study:
    """Rows that are compared at one budget, seed by seed and problem by problem."""

    rows: dict[str, Row]
    base: str
    """The row that every other is tested against."""
    output: str
    """Folder of the runs."""
    page: str
    """Folder of the page."""
    budget: Budget
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    settings: tuple[str, ...] = ()
    """Of every row."""
    responses_between_evaluations: Annotated[int, Field(gt=0)] = 480
    """Training responses, so that rows with groups are measured as often a token as those
    without."""
    tokens_per_response: Annotated[float, Field(gt=0)] = 30.0
    """From which steps are planned; what was really spent stands on the page."""
    levels: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9)
    """Accuracies to which tokens are counted."""
    claims: str | None = None
    """A file of claims to test."""

    def __post_init__(self) -> None:
        if self.base not in self.rows:
            raise RecipeError(f"base: {self.base!r} is no row of this study; name one that is")


@dataclass(frozen=True)
class Run:
    """One row with one seed, and at one learning rate where several are tried."""

    row: str
    seed: int
    folder: Path
    command: tuple[str, ...] = field(repr=False)
    tree: Mapping[str, Any] = field(repr=False)
    """The resolved recipe, as the run's folder keeps it."""
    learning_rate: str = ""
    made: tuple[tuple[Path, tuple[str, ...]], ...] = field(default=(), repr=False)
    """Paths that must exist before, each with the command that makes it."""


def open_study(path: Path) -> Study:
    tree = read_yaml(path.read_text(encoding="utf-8"), str(path))
    return build(Study, tree)


def trials(study: Study, row: str) -> list[Run]:
    """The runs that decide a row's learning rate; none where it has one."""
    rates = study.rows[row].learning_rates
    return [planned(study, row, study.seeds[0], rate) for rate in rates]


def runs(study: Study, rates: Mapping[str, str]) -> Iterator[Run]:
    """All runs, seed by seed, so that a study that is stopped has compared all rows with some;
    `rates` are those that the trials decided."""
    for seed in study.seeds:
        for row in study.rows:
            yield planned(study, row, seed, rates.get(row, ""))


def planned(study: Study, row: str, seed: int, learning_rate: str = "") -> Run:
    """One run with the steps that its budget asks for, unless its settings name them."""
    chosen = study.rows[row]
    baseline = chosen.recipe in BASELINES
    recipe = BASELINES.get(chosen.recipe, chosen.recipe)
    rate = [f"optimizer.learning_rate={learning_rate}"] if learning_rate else []
    given = [at(study, setting) for setting in (*study.settings, *chosen.settings, *rate)]
    folder = Path(study.output) / "-".join(
        [row, *([f"lr{learning_rate}"] if learning_rate else []), f"seed{seed}"]
    )
    settings = [*pace(study, recipe, given), *given, f"seed={seed}", f"output={folder}"]
    tree = build(Recipe, load_recipe(recipe, settings)).tree
    if baseline:
        script = str(SCRIPTS / "baselines" / f"{chosen.recipe}.py")
        command = (sys.executable, script, *settings)
        tree = {**tree, "trainer": chosen.recipe}
    else:
        command = (*OPD, "train", recipe, *settings)
    made = tuple(
        (Path(at(study, path)), (*OPD, *shlex.split(at(study, arguments))))
        for path, arguments in chosen.made.items()
    )
    return Run(row, seed, folder, command, tree, learning_rate, made)


def at(study: Study, text: str) -> str:
    return text.replace("{output}", study.output)


def pace(study: Study, recipe: str, given: list[str]) -> list[str]:
    """Steps within the budget and steps between evaluations. A written answer counts as much as a
    sampled one."""
    built = build(Recipe, load_recipe(recipe, given))
    most = built.source.most_per_problem
    responses = built.problems_per_step * (int(most) if math.isfinite(most) else 1)
    every = max(1, round(study.responses_between_evaluations / responses))
    if study.budget.unit == "seconds":
        return [f"evaluation.every={every}"]
    steps = max(1, round(study.budget.amount / (responses * study.tokens_per_response)))
    return [f"steps={steps}", f"evaluation.every={every}"]
