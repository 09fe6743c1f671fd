"""Rollouts on disk: drawn and judged by one command, scored by a teacher in another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from accelerate import Accelerator

from opd.config import dump, locate
from opd.errors import DataError, RecipeError
from opd.learner.batch import assemble, to_device
from opd.learner.learner import Learner
from opd.learner.model import context_length, weights_id
from opd.privileged import Group, Problem, Trajectory
from opd.recipe import Recipe
from opd.reward import Judge
from opd.rollout.chat import Chat
from opd.rollout.judged import Judged, read_judged, refuse_existing, write_judged
from opd.rows import sha256_of
from opd.run import open_learner, open_sampler
from opd.teacher.exposure import Fixed
from opd.teacher.recording import Form, Heading, add, begin, warn_of_another_teacher
from opd.types import Scores

TOKENS_PER_FILE = 1 << 16
"""After how many response tokens the next file of a recording begins."""


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


def score(recipe: Recipe, rollouts: Path, to: Path, form: Form = "token", size: int = 64) -> int:
    """Record in the folder `to` what each view of the recipe's teacher thinks of every stored
    token; with `form` top of its `size` most probable entries. What a killed call has left is gone
    on with.

    Returns how many rollouts were scored. Raises DataError for a malformed row, a prompt that is no
    problem of the recipe, or a folder that holds anything else; RecipeError for what changes from
    step to step.
    """
    teacher, model = recipe.teacher, recipe.model
    if teacher.exposure != Fixed():
        raise RecipeError(
            "teacher.exposure: what is scored once is scored with whole references; leave it at 1"
        )
    written = next((view for view in teacher.views if teacher.written(view)), None)
    if written is not None:
        raise RecipeError(
            f"teacher.views.{written}: what the teacher writes anew in every step cannot be scored "
            "once; choose another view"
        )
    folders = {view: teacher.weights_of(view).folder(model) for view in teacher.views}
    problems = recipe.problems.problems()
    groups = read_groups(rollouts, problems)
    answered = {group.problem.prompt.id for group in groups}
    teacher.open_views([problem for problem in problems if problem.prompt.id in answered])
    chat = Chat.open(locate(model.path), model.thinking)
    learner = open_learner(recipe, Accelerator())
    heading = Heading(
        form=form,
        size=size if form == "top" else 0,
        temperature=learner.temperature,
        chat=chat.fingerprint,
        teachers={view: weights_id(folder) for view, folder in folders.items()},
        views=cast("dict[str, object]", dump(teacher.views)),
        rollouts=sha256_of(rollouts),
    )
    warn_of_another_teacher(model.path, heading)
    begin(to, heading)
    trajectories = [t for group in groups for t in shown(recipe, group, chat)]
    for number, some in enumerate(portions(trajectories)):
        shard = to / f"scores-{number:05}.safetensors"
        if not shard.exists():
            add(shard, heading, some, scored(recipe, learner, chat, some))
    return len(trajectories)


def shown(recipe: Recipe, group: Group, chat: Chat) -> Iterator[Trajectory]:
    """A group's rollouts with what the teacher reads before each, as far as it fits."""
    longest = context_length(recipe.model.path)
    for index, (rollout, verdict) in enumerate(zip(group.rollouts, group.verdicts, strict=True)):
        seen = recipe.teacher.contexts(group, index, tuple(recipe.teacher.views), chat)
        room = longest - len(rollout.token_ids)
        fitting = {view: ids for view, ids in seen.items() if len(ids) <= room}
        yield Trajectory(rollout, verdict, 0.0, group.pass_rate, fitting)


def portions(trajectories: Sequence[Trajectory]) -> Iterator[list[Trajectory]]:
    """Neighbours that are scored and kept together."""
    some: list[Trajectory] = []
    tokens = 0
    for trajectory in trajectories:
        some.append(trajectory)
        tokens += len(trajectory.rollout.token_ids)
        if tokens >= TOKENS_PER_FILE:
            yield some
            some, tokens = [], 0
    if some:
        yield some


def scored(
    recipe: Recipe, learner: Learner, chat: Chat, trajectories: Sequence[Trajectory]
) -> list[dict[str, Scores]]:
    """Each view's scores of each trajectory."""
    batches = [
        to_device(
            assemble(trajectories, [index], packing=False, pad_id=chat.pad_id),
            learner.accelerator.device,
        )
        for index in range(len(trajectories))
    ]
    return recipe.teacher.score(trajectories, batches, tuple(recipe.teacher.views), learner)


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
