"""Rollouts on disk: drawn and judged by one command, scored by a teacher in another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator

from opd.config import locate
from opd.errors import DataError
from opd.learner.batch import assemble, to_device
from opd.learner.learner import Learner
from opd.learner.model import weights_id
from opd.privileged import Group, Problem, Trajectory
from opd.recipe import Recipe
from opd.reward import Judge
from opd.rollout.chat import Chat
from opd.rollout.judged import Judged, read_judged, refuse_existing, write_judged
from opd.run import open_learner, open_sampler


def sample(recipe: Recipe, count: int, to: Path) -> int:
    """Draw and judge the rollouts of the first `count` problems into the new file `to`.

    Returns how many stand in it. Raises DataError when `to` exists.
    """
    refuse_existing(to)
    problems = recipe.source.answered(recipe.problems.problems())[:count]
    judge = Judge(recipe.reward, problems)
    sampler = open_sampler(recipe)
    drawn_by, chat = weights_id(recipe.model.path), sampler.chat.fingerprint
    try:
        drawn = recipe.source.collect(problems, sampler, recipe.sampling, step=0)
    finally:
        sampler.engine.close()
    return write_judged(
        to,
        (
            Judged(rollout, verdict, drawn_by if rollout.policy_step >= 0 else None, chat)
            for rollouts in drawn
            for rollout, verdict in zip(rollouts, judge(rollouts), strict=True)
        ),
    )


def score(recipe: Recipe, rollouts: Path, to: Path) -> int:
    """Write what each view of the recipe's teacher thinks of every stored token to the new file
    `to`: `[T]` log-probs of the taken tokens and `[T]` entropies a view, in nats.

    Returns how many rollouts were scored. Raises DataError for a malformed row, a prompt that is no
    problem of the recipe, or an existing `to`.
    """
    refuse_existing(to)
    groups = read_groups(rollouts, recipe.problems.problems())
    chat = Chat.open(locate(recipe.model.path), recipe.model.thinking)
    learner = open_learner(recipe, Accelerator())
    return write_rows(
        to,
        (row for group in groups for row in scored(recipe, learner, chat, group)),
    )


def scored(
    recipe: Recipe, learner: Learner, chat: Chat, group: Group
) -> Iterator[Mapping[str, object]]:
    """A group's rows of teacher scores."""
    views = tuple(recipe.teacher.views)
    trajectories = [
        Trajectory(
            rollout,
            verdict,
            0.0,
            group.pass_rate,
            recipe.teacher.contexts(group, index, views, chat),
        )
        for index, (rollout, verdict) in enumerate(zip(group.rollouts, group.verdicts, strict=True))
    ]
    everyone = range(len(trajectories))
    batch = assemble(trajectories, everyone, packing=False, pad_id=chat.pad_id)
    batch = to_device(batch, learner.accelerator.device)
    (scores,) = recipe.teacher.score(trajectories, [batch], views, learner)
    for index, trajectory in enumerate(trajectories):
        own = batch.sequence == index
        yield {
            "prompt_id": trajectory.rollout.prompt.id,
            "token_ids": trajectory.rollout.token_ids,
            "views": {
                name: {
                    "logprob": scores[name].logprob[own].tolist(),
                    "entropy": scores[name].entropy[own].tolist(),
                }
                for name in trajectory.views
            },
        }


def read_groups(path: Path, problems: Sequence[Problem]) -> list[Group]:
    """The stored rollouts, grouped by problem in order of first appearance."""
    known = {problem.prompt.id: problem for problem in problems}
    groups = []
    for name, rows in read_judged(path).items():
        if name not in known:
            raise DataError(
                f"{path}: it answers {name!r}, which is no problem of this recipe; use the recipe "
                "that sampled it"
            )
        rollouts, verdicts = (row.rollout for row in rows), (row.verdict for row in rows)
        groups.append(Group(known[name], tuple(rollouts), tuple(verdicts)))
    return groups


def write_rows(to: Path, rows: Iterable[Mapping[str, object]]) -> int:
    """Write one JSON object a line; how many."""
    to.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with to.open("x", encoding="utf-8") as file:
        for count, row in enumerate(rows, start=1):  # noqa: B007
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count
