"""What a step is made of: problems, judged rollouts, teacher prompts, scored micro-batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from accelerate.utils import gather_object

from opd.learner.batch import pack, to_device
from opd.learner.influence import Scored
from opd.learner.learner import Learner
from opd.learner.metrics import add_mean, over_ranks
from opd.privileged import Group, Problem, Trajectory
from opd.run import Run
from opd.types import Batch, Scores

T = TypeVar("T")


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
        for where, view in teacher.written(name):
            with run.awake(teacher.weights_of(name).weights(run.learner)) as waking:
                sampler = replace(waking, chat=waking.chat.in_mode(teacher.thinking_of(name)))
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


def remembered(run: Run, trajectories: Sequence[Trajectory], step: int) -> list[Trajectory]:
    """Trajectories with what the policy, as it stands, makes of their tokens, where a loss compares
    with it and several updates will leave it behind."""
    found = list(trajectories)
    if run.recipe.updates_per_step == 1:
        return found
    for context, terms in run.learner.contexts(step).items():
        if any(term.loss.needs_earlier for term in terms.values()):
            for batch in micro_batches(run, found, context):
                logprob = run.learner.logprobs(batch.student, batch.target_ids)
                for number, place in enumerate(batch.members):
                    own = tuple(logprob[batch.sequence == number].tolist())
                    known = {**found[place].earlier_logprobs, context: own}
                    found[place] = replace(found[place], earlier_logprobs=known)
    return found


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
    prepare(run, groups, views, step, reveal)
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
