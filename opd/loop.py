"""The loop: sample, judge, show the teacher, score, update, follow: the algorithm in order."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed

from opd.errors import CollapseError, RecipeError
from opd.evaluation.evaluator import Measurement, before_and_after, measure
from opd.guard import Breach
from opd.learner.batch import pack, to_device
from opd.learner.checkpoint import claim, library_versions
from opd.learner.influence import Scored
from opd.learner.learner import Learner, add_mean, over_ranks
from opd.learner.model import save_causal
from opd.parts import observe, parts, tell
from opd.privileged import Group, Problem, Trajectory
from opd.recipe import Recipe
from opd.record import as_one, record_rollouts, record_step
from opd.rows import replace_file
from opd.run import Run, open_run
from opd.screen import Screen
from opd.teacher.analysis import Analysis
from opd.teacher.recording import TAUGHT_BY
from opd.types import Batch, Scores

T = TypeVar("T")


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


def readings(measured: Iterable[Measurement]) -> dict[str, float]:
    """Everything that evaluations have found, by benchmark/name."""
    return {name: value for each in measured for name, value in each.readings.items()}


def heed(run: Run, numbers: Mapping[str, float], *, measured: bool) -> bool:
    """Whether the run may go on from where it is, and not from where it went back to.

    Raises CollapseError, with a checkpoint on disk, when a limit that stops the run is not kept.
    """
    guard = run.recipe.guard
    breaches = guard.read(numbers)
    for breach in breaches:
        run.log.warn(run.progress.step, breach.sentence)
    for name in guard.unread() if run.progress.step == 1 else ():
        sentence = (
            f"guard.limits.{name}.metric: nothing is called {guard.limits[name].metric!r}; choose "
            f"from {', '.join(sorted({*numbers, *readings(run.progress.before.values())}))}"
        )
        if guard.limits[name].then != "warn":
            raise RecipeError(sentence)
        run.log.warn(1, sentence)
    grave = [breach for breach in breaches if breach.then != "warn"]
    if grave:
        go_back(run, grave)
    elif measured and guard.keeps_good and guard.is_calm:
        run.save(to=run.good)
    return not grave


def go_back(run: Run, grave: Sequence[Breach]) -> None:
    """Take up the last good state, or raise CollapseError where that is not asked for, was done as
    often as may be, or there is none."""
    guard, step, good = run.recipe.guard, run.progress.step, run.good.latest()
    stops = [breach for breach in grave if breach.then == "stop"]
    if stops or guard.rolled_back == guard.rollbacks or good is None:
        run.save()
        kept = "no state was good" if good is None else f"{run.good.folder} keeps step {good}"
        raise CollapseError(
            f"{(stops or grave)[0].sentence} at step {step}, where the run stops; {kept}; lower "
            "optimizer.learning_rate or widen the limit, and give another `output=`"
        )
    run.roll_back()
    factor = run.learner.learning_rate_scale
    run.log.warn(good, f"back from step {step}, with the learning rate times {factor:g}")


def choose(run: Run, step: int) -> tuple[Problem, ...]:
    """The problems of a step, once their pass rates are known; fewer where fewer can be drawn."""
    recipe, stream = run.recipe, run.stream
    recipe.pass_rate.refresh(step, stream.problems, run.draw)
    for term in recipe.terms.values():
        for weight in term.weights:
            weight.fit(recipe.pass_rate.known)
    drawable = recipe.pass_rate.drawable(stream.problems)
    size = min(recipe.problems_per_step, len(drawable))
    return replace(stream, problems=drawable).batch(step, size)


def collect(run: Run, problems: Sequence[Problem], step: int) -> list[Group]:
    """This rank's rollouts of a step, judged."""
    mine = problems[run.accelerator.process_index :: run.accelerator.num_processes]
    with run.awake() as sampler:
        drawn = run.recipe.source.collect(mine, sampler, run.recipe.sampling, step)
    return [
        Group(problem, tuple(rollouts), tuple(run.judge(rollouts)))
        for problem, rollouts in zip(mine, drawn, strict=True)
    ]


def needed_views(learner: Learner, step: int) -> tuple[str, ...]:
    """The views that some active term reads or is trained behind, each once."""
    terms = learner.active(step).values()
    behind = (term.context for term in terms if term.context != "student")
    return tuple(dict.fromkeys([*(view for term in terms for view in term.views), *behind]))


def prepare(
    run: Run, groups: Sequence[Group], views: Sequence[str], step: int, reveal: float = 1.0
) -> None:
    """Let the teacher write what some views show of a problem; it counts as generated."""
    teacher, sampling = run.recipe.teacher, run.recipe.sampling
    for name in views:
        for where, view in parts(teacher.views[name]):
            if not isinstance(view, Analysis):
                continue
            with run.awake(teacher.weights_of(name).weights(run.learner)) as waking:
                sampler = replace(waking, chat=waking.chat.in_mode(teacher.thinking))
                drawn = view.prepare(groups, sampler, sampling, f"{name}/{where}/{step}", reveal)
            run.progress.generated_tokens += sum(gather_object([drawn]))


def annotate(
    run: Run, groups: Sequence[Group], views: Sequence[str], reveal: float = 1.0
) -> list[Trajectory]:
    """Judged rollouts with their advantage and what the teacher reads before them, of references
    the share `reveal`.

    A rollout without a verdict is left out, and one that the recipe does not select. A teacher
    prompt that leaves no room for its response counts as absent: nothing is cut.
    """
    trajectories = []
    for group in groups:
        advantages = run.recipe.credit(group)
        selected = run.recipe.selection(group)
        for index, (rollout, verdict) in enumerate(
            zip(group.rollouts, group.verdicts, strict=True)
        ):
            if verdict.status == "no_verdict" or index not in selected:
                continue
            seen = shown(run, group, index, views, reveal)
            trajectories.append(
                Trajectory(
                    rollout, verdict, advantages[index], run.recipe.pass_rate.of(group), seen
                )
            )
    return trajectories


def shown(
    run: Run, group: Group, index: int, views: Sequence[str], reveal: float
) -> dict[str, tuple[int, ...]]:
    """View name to the teacher's prompt before a rollout, where it leaves room for it."""
    seen = run.recipe.teacher.contexts(group, index, views, run.chat, reveal)
    room = run.context_length - len(group.rollouts[index].token_ids)
    return {name: ids for name, ids in seen.items() if len(ids) <= room}


def shares(trajectories: Sequence[T], count: int) -> list[Sequence[T]]:
    """`count` runs of neighbours, as even as can be."""
    ends = [len(trajectories) * i // count for i in range(count + 1)]
    return [trajectories[start:end] for start, end in pairwise(ends)]


def scored_batches(
    run: Run, trajectories: Sequence[Trajectory], step: int
) -> tuple[list[Batch], list[dict[str, Scores]]]:
    """Micro-batches of every context that some active term trains behind, on the learner's device,
    and what the teacher makes of each in the views that are read there."""
    contexts = {name: terms for name, terms in run.learner.contexts(step).items() if terms}
    batches: list[Batch] = []
    scores: list[dict[str, Scores]] = []
    for context, terms in (contexts or {"student": {}}).items():
        here = micro_batches(run, trajectories, context)
        views = list(dict.fromkeys(view for term in terms.values() for view in term.views))
        batches += here
        scores += run.recipe.teacher.score(trajectories, here, views, run.learner)
    return batches, scores


def other_problems(run: Run, views: Sequence[str], reveal: float, step: int) -> Scored:
    """Fresh rollouts of a few training problems, always the same, as an update would see them."""
    groups = run.draw(run.few(run.recipe.influence.problems), 1, f"influence/{step}")
    return scored_batches(run, annotate(run, groups, views, reveal), step)


def micro_batches(run: Run, trajectories: Sequence[Trajectory], context: str) -> list[Batch]:
    """Micro-batches behind the prompts of a context, on the learner's device."""
    packed = pack(
        trajectories,
        tokens_per_batch=run.recipe.tokens_per_batch,
        packing=run.recipe.packing,
        pad_id=run.chat.pad_id,
        context=context,
    )
    return [to_device(batch, run.accelerator.device) for batch in packed]


def probe(run: Run, views: Sequence[str], reveal: float) -> dict[str, float]:
    """What the student and the teachers think of the probe's answers: means over the tokens of all
    ranks, nats. Nothing without a probe."""
    if not run.probed:
        return {}
    mine = run.probed[run.accelerator.process_index :: run.accelerator.num_processes]
    trajectories = [
        Trajectory(
            group.rollouts[0], group.verdicts[0], 0.0, 1.0, shown(run, group, 0, views, reveal)
        )
        for group in mine
    ]
    batches = micro_batches(run, trajectories, "student")
    scores = run.recipe.teacher.score(trajectories, batches, views, run.learner)
    totals: dict[str, float] = defaultdict(float)
    for batch, seen in zip(batches, scores, strict=True):
        logprob = run.learner.logprobs(batch.student, batch.target_ids)
        add_mean(totals, "probe/nll", -logprob)
        for view, found in seen.items():
            if found.present.any():
                known = found.logprob[found.present]
                add_mean(totals, f"probe/teacher_logprob/{view}", known)
    return over_ranks(totals)


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
        if authors := recipe.source.authors():
            replace_file(output / "model" / TAUGHT_BY, json.dumps(sorted(authors)))
        run.log.summary(summary)
    return summary
