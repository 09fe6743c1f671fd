"""The suite: which benchmarks a model is measured on, and how; every knob and its default."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, cast

from pydantic import Field

from opd.config import RECIPES, build, dump, load_recipe, part
from opd.errors import DataError, RecipeError
from opd.evaluation.candidate import Serving
from opd.evaluation.collect import Task
from opd.evaluation.evaluator import Benchmark
from opd.problems import Dataset
from opd.recipe import Recipe
from opd.reward import Judge, Reward
from opd.rollout.endpoint import Endpoint
from opd.rollout.engine import Engine, Sampling
from opd.rollout.hf import HF
from opd.rows import sha256_of

SUITES = RECIPES / "suites"


@part
class Entry(Dataset):
    """One benchmark of a suite; what it leaves out is the suite's."""

    filename: str | None = None
    """Its name below the folder of `--files`; then `sha256` is this file's."""
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

    def read_from(self, folder: Path) -> Suite:
        """The benchmarks whose files lie below `folder`. Raises DataError where none does."""
        if not folder.is_dir():
            raise DataError(f"--files {folder}: is no folder; give the one that holds the files")
        known = {n: folder / e.filename for n, e in self.benchmarks.items() if e.filename}
        present = {name: path for name, path in known.items() if path.is_file()}
        if not present:
            wanted = ", ".join(path.name for path in known.values()) or "no file"
            raise DataError(
                f"--files {folder}: holds no file of the suite, which knows {wanted}; leave "
                "--files out to take the datasets that the suite names"
            )
        entries = {
            name: replace(self.benchmarks[name], dataset=str(path), subset=None, revision=None)
            for name, path in present.items()
        }
        return replace(self, benchmarks=entries)

    def read_from_the_hub(self) -> Suite:
        """This suite without the hashes of files that are not read."""
        entries = {
            name: entry if entry.filename is None else replace(entry, sha256=None)
            for name, entry in self.benchmarks.items()
        }
        return replace(self, benchmarks=entries)


def load_suite(name: str, overrides: Sequence[str] = ()) -> Suite:
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
class OpenSuite:
    """A suite whose rows are read; its tasks hold prompts and judges, no Problem."""

    suite: Suite
    tasks: Mapping[str, Task]
    """By benchmark, as is the next."""
    about: Mapping[str, Mapping[str, object]]
    """For a protocol: dataset and hash, adapter, reward and what its verdicts depend on."""
    skipped: tuple[str, ...]
    """Benchmarks whose file is not there."""


def open_suite(suite: Suite, files: Path | None) -> OpenSuite:
    """Read every benchmark, from the folder `files` where it is given. Raises DataError with the
    place of a row that is at fault, and for a file that is not the known one."""
    taken = suite.read_from_the_hub() if files is None else suite.read_from(files)
    opened = {name: open_task(name, taken) for name in taken.benchmarks}
    return OpenSuite(
        taken,
        {name: task for name, (task, _) in opened.items()},
        {name: about for name, (_, about) in opened.items()},
        tuple(name for name in suite.benchmarks if name not in taken.benchmarks),
    )


def open_task(name: str, suite: Suite) -> tuple[Task, dict[str, object]]:
    entry, reward = suite.benchmarks[name], suite.reward_of(name)
    try:
        problems = entry.problems()
        judge = Judge(reward, problems)
    except DataError as error:
        raise DataError(
            f"benchmarks.{name}: {error}; or leave it out with benchmarks.{name}=null"
        ) from error
    prompts = tuple(problem.prompt for problem in problems)
    content = json.dumps([asdict(problem) for problem in problems], sort_keys=True)
    task = Task(
        Benchmark(name, prompts, judge),
        suite.sampling_of(name),
        suite.samples_of(entry),
        suite.greedy,
    )
    path = entry.file
    return task, {
        "dataset": entry.dataset if path is None else path.name,
        "subset": entry.subset,
        "split": entry.split if path is None else None,
        "revision": entry.revision,
        "sha256": None if path is None else sha256_of(path),
        "where": dict(entry.where),
        "problems": len(prompts),
        "problems_sha256": hashlib.sha256(content.encode()).hexdigest(),
        "adapter": dump(entry.adapter),
        "reward": dump(reward),
        "provenance": dict(reward.provenance()),
    }
