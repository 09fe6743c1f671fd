"""The loop: sample, judge, show the teacher, score, update, follow: the algorithm in order."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from opd.evaluation.evaluator import Measurement, before_and_after, measure
from opd.learner.checkpoint import claim, library_versions
from opd.learner.model import save_causal
from opd.parts import observe, tell
from opd.recipe import Recipe
from opd.record import as_one, record_rollouts, record_step
from opd.run import Run, open_run
from opd.screen import Screen
from opd.step import (
    annotate,
    choose,
    collect,
    needed_views,
    other_problems,
    prepare,
    probe,
    remembered,
    scored_batches,
    shares,
)
from opd.teacher.recording import note_imitated
from opd.watch import heed, readings


def train(recipe: Recipe) -> Mapping[str, Any]:
    """Run `recipe`, or take it up again, and return what stands in its summary.json.

    Raises OpdError, with the last checkpoint on disk, when something is at fault.
    """
    accelerator = Accelerator()
    set_seed(recipe.seed)
    output = Path(recipe.output)
    alone = claim(output, recipe.tree)
    with alone if accelerator.is_main_process else nullcontext():
        if (output / "summary.json").exists():
            return finished(output, recipe)
        run = open_run(recipe, accelerator)
        try:
            run.restore()
            run.verify_sync()
            take_steps(run)
            return close(run)
        finally:
            run.log.close()
            run.sampler.engine.close()


def finished(output: Path, recipe: Recipe) -> Mapping[str, Any]:
    """What a run that came to its end has left."""
    summary: Mapping[str, Any] = json.loads((output / "summary.json").read_text())
    screen = Screen(output.name, recipe.steps)
    screen.say(f"{output} holds this very run, finished; give another output= to run it again")
    screen.summary(summary)
    return summary


def take_steps(run: Run) -> None:
    """Every step that is left."""
    recipe, learner, teacher = run.recipe, run.learner, run.recipe.teacher
    if not run.progress.before:
        run.progress.before = {m.benchmark: m for m in evaluate(run)}
        heed(run, readings(run.progress.before.values()), measured=True)
    while (step := run.progress.step) < recipe.steps:
        tell(recipe, step, recipe.steps)
        started = time.perf_counter()
        problems = choose(run, step)
        groups = collect(run, problems, step)
        sampled = time.perf_counter()
        views = needed_views(learner, step)
        reveal = teacher.exposure.at(step, recipe.steps, recipe.seed)
        prepare(run, groups, views, step, reveal)
        trajectories = annotate(run, groups, views, reveal)
        record_rollouts(run, trajectories, views, step)
        probed = probe(run, views, reveal)
        updates = []
        trajectories = remembered(run, trajectories, step)
        for share in shares(trajectories, recipe.updates_per_step):
            batches, scores = scored_batches(run, share, step)
            others = partial(other_problems, run, views, reveal, step)
            batches = recipe.influence((batches, scores), learner, step, others)
            updates.append(learner.update(batches, scores, step))
        if any(trajectory.rollout.policy_step >= 0 for trajectory in trajectories):
            run.refuse_mismatch(updates[0].metrics.get("mismatch/mean", 0.0))
        teacher.follow(learner)
        solved = partial(run.solved, recipe.extrapolation.problems)
        leapt = recipe.extrapolation(step + 1, learner, solved)
        ended = time.perf_counter()
        update = as_one(updates, {"exposure": reveal, **probed, **leapt})
        numbers = record_step(run, groups, update, sampled - started, ended - sampled)
        observe(recipe, update, groups)
        measured = recipe.evaluation.is_due(run.progress.step) and run.progress.step < recipe.steps
        if measured:
            numbers |= readings(evaluate(run))
        if not heed(run, numbers, measured=measured):
            continue
        if recipe.checkpoint.every and run.progress.step % recipe.checkpoint.every == 0:
            run.save()


def evaluate(run: Run) -> list[Measurement]:
    """Measure every benchmark under the current weights and log it."""
    started = time.perf_counter()
    protocol = run.recipe.evaluation
    sampling = protocol.sampling or run.recipe.sampling
    with run.awake() as waking:
        sampler = replace(waking, chat=waking.chat.in_mode(protocol.thinking))
        measured = [
            measure(
                benchmark,
                sampler,
                sampling,
                protocol.samples,
                rank=run.accelerator.process_index,
                ranks=run.accelerator.num_processes,
            )
            for benchmark in run.benchmarks
        ]
    run.progress.seconds += time.perf_counter() - started
    for measurement in measured:
        run.log.evaluation(run.progress.spent, measurement)
    return measured


def close(run: Run) -> Mapping[str, Any]:
    """Measure again, write the summary, the last checkpoint and a plain model folder."""
    recipe, progress = run.recipe, run.progress
    after = evaluate(run)
    if not heed(run, readings(after), measured=True):
        take_steps(run)
        return close(run)
    run.save()
    output = Path(recipe.output)
    summary = {
        "name": output.name,
        **{m.benchmark: before_and_after(progress.before[m.benchmark], m) for m in after},
        "generated_tokens": progress.generated_tokens,
        "learner_tokens": progress.learner_tokens,
        "seconds": progress.seconds,
        "steps": progress.step,
        "seed": recipe.seed,
        "versions": library_versions(),
        "verdicts": dict(recipe.reward.provenance()),
    }
    if run.accelerator.is_main_process:
        save_causal(run.learner.model, output / "model")
        run.chat.tokenizer.save_pretrained(output / "model")
        note_imitated(output / "model", recipe.model.path, recipe.source.authors())
        run.log.summary(summary)
    return summary
