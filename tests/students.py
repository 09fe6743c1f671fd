"""A random student and a few judged rollouts of uneven length, for the invariants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from accelerate import Accelerator
from torch import Tensor

from opd.config import build, load_recipe
from opd.learner.batch import pack
from opd.learner.learner import Learner, Optimizer
from opd.learner.model import LoRA, Model
from opd.objective.divergence import ForwardKL
from opd.objective.loss import Distill, Observed, SequenceLoss
from opd.objective.schedule import Constant
from opd.objective.term import Term
from opd.objective.weight import UpdateWeight, Weight
from opd.privileged import Trajectory
from opd.recipe import Recipe
from opd.teacher.score import Teacher
from opd.teacher.view import Plain
from opd.teacher.weights import Frozen
from opd.types import Message, Prompt, Rollout, Seen, Tokens, Verdict

TRAJECTORIES = 7


def open_student(
    folder: Path,
    terms: Mapping[str, Term] | None = None,
    *,
    lora: bool = False,
    gradient_checkpointing: bool = False,
    compile: bool = False,
    accelerator: Accelerator | None = None,
) -> Learner:
    """A learner that starts from the same weights every time."""
    torch.manual_seed(0)
    learner = Learner(
        Model(
            path=str(folder),
            lora=LoRA(rank=4, alpha=8) if lora else None,
            gradient_checkpointing=gradient_checkpointing,
            compile=compile,
        ),
        terms or {"distil": distil("solution")},
        Optimizer(learning_rate=Constant(value=1e-3), max_grad_norm=1e9),
        accelerator or Accelerator(cpu=True),
        steps=10,
        temperature=1.0,
        max_response_tokens=16,
    )
    if lora:
        perturb_adapter(learner)
    return learner


def perturb_adapter(learner: Learner) -> None:
    """B starts at zero, where an adapter that is on equals one that is off."""
    for name, parameter in learner.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)


def distil(view: str, *weights: Weight, coefficient: float = 1.0) -> Term:
    """A plain distillation term."""
    loss = Distill(target=view, divergence=ForwardKL())
    return Term(loss=loss, weights=weights, coefficient=Constant(value=coefficient))


@dataclass(frozen=True)
class Coupled(SequenceLoss):
    """Every token's loss depends on all tokens of the update, on its group, on its teacher and on
    what the student thinks of it."""

    distil: Distill | None = None

    @property
    def inner(self) -> Distill | None:
        return self.distil

    @property
    def views(self) -> tuple[str, ...]:
        return ("solution",)

    def counts(self, tokens: Tokens, teachers: Mapping[str, Seen]) -> Tensor:
        return tokens.position != 1

    def sequences(
        self, values: Tensor, tokens: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        white = (values - values.mean()) / values.std()
        group = tokens.group[tokens.sequence]
        of_group = torch.zeros(int(group.max()) + 1).index_add(0, group, values)[group]
        first = tokens.position == 0
        gap = teachers["solution"].logprob - values
        sure = teachers["student"].logprob / (1 + teachers["student"].entropy)
        return white**2 * tokens.advantage[tokens.sequence] * sure + of_group * gap * first, {
            "gap": gap.detach()
        }


@dataclass(frozen=True)
class Rank(UpdateWeight):
    """How many tokens of the update the teacher finds less likely, as a share."""

    @property
    def views(self) -> tuple[str, ...]:
        return ("solution",)

    def over_update(self, tokens: Tokens, teachers: Mapping[str, Seen]) -> Tensor:
        logprob = teachers["solution"].logprob
        return (logprob > logprob.unsqueeze(-1)).float().mean(-1)


def drawn_by(folder: Path) -> list[Trajectory]:
    """The rollouts with the log-probs that the student itself gives them."""
    trajectories = draw_trajectories()
    learner = open_student(folder)
    for batch in pack(trajectories, tokens_per_batch=1, packing=False, pad_id=0):
        (member,) = batch.members
        logprobs = learner.logprobs(batch.student, batch.target_ids)
        rollout = replace(trajectories[member].rollout, logprobs=tuple(logprobs.tolist()))
        trajectories[member] = replace(trajectories[member], rollout=rollout)
    return trajectories


def grouped(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The same rollouts as if every three in a row were of one problem."""
    prompts = [trajectories[place - place % 3].rollout.prompt for place in range(len(trajectories))]
    return [
        replace(trajectory, rollout=replace(trajectory.rollout, prompt=prompt))
        for trajectory, prompt in zip(trajectories, prompts, strict=True)
    ]


def draw_trajectories(*names: str) -> list[Trajectory]:
    """Judged rollouts; the third has no view, the others those named, a solution by default,
    whose prompts are longer."""
    random = Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(random.randrange(3, 90) for _ in range(count))

    made = []
    for index in range(TRAJECTORIES):
        prompt = Prompt(f"p{index}", (Message("user", "?"),))
        response = ids(3 + 2 * index)
        rollout = Rollout(
            prompt=prompt,
            prompt_ids=ids(4 + index % 3),
            token_ids=response,
            logprobs=tuple(-random.random() for _ in response),
            policy_step=0,
            finish="stop",
            text="",
        )
        views = {name: ids(9 + index % 4) for name in names or ("solution",) if index != 2}
        verdict = Verdict("pass" if index % 2 else "fail", float(index % 2))
        made.append(Trajectory(rollout, verdict, random.uniform(-1, 1), 0.25, views))
    return made


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    """A copy of every gradient."""
    return {
        name: parameter.grad.clone()
        for name, parameter in learner.model.named_parameters()
        if parameter.grad is not None
    }


def distance(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> float:
    """The largest difference between two sets of gradients, relative to the largest gradient."""
    assert first.keys() == second.keys()
    largest = max(float(value.abs().max()) for value in first.values())
    gap = max(float((first[name] - second[name]).abs().max()) for name in first)
    return gap / largest


def recipe_terms(name: str, *overrides: str) -> dict[str, Term]:
    """The terms of a recipe."""
    return build(Recipe, load_recipe(name, overrides)).terms


def update_of(
    folder: Path,
    terms: Mapping[str, Term],
    trajectories: Sequence[Trajectory],
    *,
    step: int = 0,
    tokens_per_batch: int = 10_000,
) -> tuple[float, dict[str, torch.Tensor]]:
    """(the loss, the gradients) of one update from the same weights; every view is as the
    trajectories say, behind the initial weights."""
    learner = open_student(folder, terms)
    views = tuple(dict.fromkeys(view for term in terms.values() for view in term.views))
    teacher = Teacher(weights=Frozen(), views={view: Plain() for view in views})
    teacher.weights.setup(learner)
    batches = pack(trajectories, tokens_per_batch=tokens_per_batch, packing=False, pad_id=0)
    scores = teacher.score(trajectories, batches, views, learner)
    metrics = learner.update(batches, scores, step).metrics
    loss = sum(
        term.coefficient.at(step, learner.steps) * metrics.get(f"loss/{name}", 0.0)
        for name, term in terms.items()
    )
    return loss, gradients(learner)


def pull_of(folder: Path, terms: Mapping[str, Term], step: int = 0) -> dict[str, torch.Tensor]:
    """The gradients of one update on drawn trajectories that have every view the terms read."""
    return update_of(folder, terms, with_views(draw_trajectories(), terms), step=step)[1]


def with_views(
    trajectories: Sequence[Trajectory], terms: Mapping[str, Term]
) -> Sequence[Trajectory]:
    """Trajectories with prompts for the views that the terms read: `plain` is the student's own,
    the others are longer, and one trajectory has none of these."""

    def views_of(each: Trajectory) -> Mapping[str, tuple[int, ...]]:
        own = each.rollout.prompt_ids
        if "solution" not in each.views:
            return {"plain": own}
        read = {view for term in terms.values() for view in term.views}
        return {view: ids_of(view, own) for view in read} | {"plain": own} | dict(each.views)

    return [replace(each, views=views_of(each)) for each in trajectories]


def ids_of(view: str, own: tuple[int, ...]) -> tuple[int, ...]:
    """Six tokens of the view's name before a prompt."""
    random = Random(view)
    return (*(random.randrange(3, 90) for _ in range(6)), *own)
