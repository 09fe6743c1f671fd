"""The suite: which benchmarks a model is measured on, and how; every knob and its default."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, cast

from pydantic import Field

from opd.config import RECIPES, build, dump, load_recipe, part
from opd.errors import DataError, RecipeError
from opd.evaluation.candidate import Serving, file_hash
from opd.evaluation.collect import Task
from opd.evaluation.evaluator import Benchmark
from opd.problems import Dataset
from opd.recipe import Recipe
from opd.reward import Judge, Reward
from opd.rollout.endpoint import Endpoint
from opd.rollout.engine import Engine, Sampling
from opd.rollout.hf import HF

SUITES = RECIPES / "suites"


@part
class Entry(Dataset):
    """One benchmark of a suite; what it leaves out is the suite's."""

    file: str | None = None
    """Its name below the folder of `--files`, where it may lie."""
    sha256: str | None = None
    """Of that file; another one is refused."""
    reward: Reward | None = None
    samples: Annotated[int, Field(gt=0)] | None = None
    sampling: dict[str, int | float] = field(default_factory=dict)
    """Keys of `sampling` that are its own."""


@part
class Suite:
    """What is measured, with what, and how."""

    benchmarks: dict[str, Entry]
    sampling: Sampling
    reward: Reward | None = None
    """Of every benchmark that names none."""
    samples: Annotated[int, Field(gt=0)] = 1
    """Responses a problem."""
    greedy: bool = False
    """One response at temperature 0 on top."""
    model: Serving = field(default_factory=Serving)
    engine: Engine = field(default_factory=HF)
    endpoint: Endpoint = field(default_factory=Endpoint)
    """How a model behind a server is asked."""
    chunk: Annotated[int, Field(gt=0)] = 256
    """Responses that are drawn, judged and written together: what a kill costs at most."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.benchmarks:
            raise RecipeError("benchmarks: there is none, so nothing can be measured; add one")
        for name, entry in self.benchmarks.items():
            if entry.reward is None and self.reward is None:
                raise RecipeError(
                    f"benchmarks.{name}.reward: it has none, and the suite neither; name one"
                )
            if self.samples_of(entry) > 1 and self.sampling_of(name).temperature == 0:
                raise RecipeError(
                    f"benchmarks.{name}.samples: {self.samples_of(entry)} responses at temperature "
                    "0 are all the same; set samples=1 or raise sampling.temperature"
                )

    def samples_of(self, entry: Entry) -> int:
        return entry.samples or self.samples

    def sampling_of(self, name: str) -> Sampling:
        """How the benchmark `name` is drawn."""
        base = cast("dict[str, object]", dump(self.sampling))
        own = self.benchmarks[name].sampling
        return build(Sampling, {**base, **own}, f"benchmarks.{name}.sampling")

    def reward_of(self, name: str) -> Reward:
        reward = self.benchmarks[name].reward or self.reward
        assert reward is not None, "a suite is refused where a benchmark has no reward"
        return reward

    def found_in(self, folder: Path) -> tuple[Suite, list[str]]:
        """This suite on the files below `folder`, and the names of the benchmarks that have none
        there. Raises DataError where no file is there, or one is not the known one."""
        if not folder.is_dir():
            raise DataError(f"--files {folder}: is no folder; give the one that holds the files")
        present: dict[str, Entry] = {}
        for name, entry in self.benchmarks.items():
            path = folder / (entry.file or "")
            if entry.file is not None and path.is_file():
                check_hash(name, path, entry.sha256)
                present[name] = replace(entry, dataset=str(path), subset=None)
        if not present:
            wanted = ", ".join(e.file for e in self.benchmarks.values() if e.file) or "no file"
            raise DataError(
                f"--files {folder}: holds no file of the suite, which knows {wanted}; leave "
                "--files out to take the hub's datasets"
            )
        return replace(self, benchmarks=present), [n for n in self.benchmarks if n not in present]


def check_hash(name: str, path: Path, known: str | None) -> None:
    found = file_hash(path)
    if known is not None and found != known:
        raise DataError(
            f"{path}: is not the known file of {name} (SHA-256 {found[:12]}..., not "
            f"{known[:12]}...); fetch it again, or set benchmarks.{name}.sha256=null to take it"
        )


def load_suite(name: str, overrides: tuple[str, ...] = ()) -> Suite:
    """The suite with that name or path, or the benchmarks of the recipe that goes by it."""
    is_file = name.endswith((".yaml", ".yml"))
    own = SUITES / f"{name}.yaml"
    tree = load_recipe(str(own) if not is_file and own.is_file() else name, overrides)
    return suite_of(build(Recipe, tree)) if "terms" in tree else build(Suite, tree)


def suite_of(recipe: Recipe) -> Suite:
    """What a training run measures before and after, with the same draws."""
    if not recipe.benchmarks:
        raise DataError("benchmarks: the recipe names none, so nothing can be measured; add one")
    keys = [item.name for item in fields(Dataset) if item.init]
    entries = {
        name: Entry(**{key: getattr(dataset, key) for key in keys})
        for name, dataset in recipe.benchmarks.items()
    }
    return Suite(
        benchmarks=entries,
        sampling=recipe.evaluation.sampling or recipe.sampling,
        reward=recipe.reward,
        samples=recipe.evaluation.samples,
        greedy=True,
        model=Serving(
            dtype=recipe.model.dtype,
            thinking=recipe.model.thinking,
            max_length=recipe.max_length,
        ),
        engine=recipe.engine,
        seed=recipe.seed,
    )


@dataclass(frozen=True)
class Opened:
    """A benchmark of a suite, its rows read; the task holds prompts and a judge, no Problem."""

    task: Task
    about: Mapping[str, object]
    """For the protocol: the dataset and its hash, the adapter, the reward and its versions."""


def open_suite(suite: Suite) -> dict[str, Opened]:
    """Read every benchmark. Raises DataError with the place of a row that is at fault."""
    return {name: opened(name, suite) for name in suite.benchmarks}


def opened(name: str, suite: Suite) -> Opened:
    entry, reward = suite.benchmarks[name], suite.reward_of(name)
    try:
        problems = entry.problems()
        judge = Judge(reward, problems)
    except DataError as error:
        raise DataError(f"benchmarks.{name}: {error}") from error
    prompts = tuple(problem.prompt for problem in problems)
    rows = json.dumps([[p.id, [[m.role, m.content] for m in p.messages]] for p in prompts])
    task = Task(
        Benchmark(name, prompts, judge),
        suite.sampling_of(name),
        suite.samples_of(entry),
        suite.greedy,
    )
    path = Path(entry.dataset)
    return Opened(
        task,
        {
            "dataset": path.name if path.is_file() else entry.dataset,
            "subset": entry.subset,
            "split": None if path.is_file() else entry.split,
            "sha256": file_hash(path) if path.is_file() else None,
            "where": dict(entry.where),
            "problems": len(prompts),
            "prompts_sha256": hashlib.sha256(rows.encode()).hexdigest(),
            "adapter": entry.adapter,
            "reward": dump(reward),
            "provenance": dict(reward.provenance()),
        },
    )
