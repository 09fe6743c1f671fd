"""How far what a rollout teaches points where a few other problems would have it point.

Legend: `S` sequences, `N` action tokens, `D` hidden width, `d` width of the sketch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from typing import Annotated, Any

import torch
from accelerate.utils import gather_object
from pydantic import Field
from torch import Tensor

from opd.config import part
from opd.learner.learner import Learner
from opd.learner.model import head_of, hidden_states
from opd.learner.rows import student_rows
from opd.types import Batch, Scores

Scored = tuple[Sequence[Batch], Sequence[Mapping[str, Scores]]]
"""Micro-batches, and what the teacher makes of each."""


class InfluenceSource(ABC):
    """Where the influence of each rollout, `Batch.influence`, comes from."""

    problems: int = 0
    """Training problems that say where to point."""

    @abstractmethod
    def __call__(
        self, scored: Scored, learner: Learner, step: int, others: Callable[[], Scored]
    ) -> Sequence[Batch]:
        """The micro-batches with their influences; `others` draws rollouts of `problems` under the
        current weights, this rank's share."""


@part
class NoInfluence(InfluenceSource):
    """0 for every rollout."""

    def __call__(
        self, scored: Scored, learner: Learner, step: int, others: Callable[[], Scored]
    ) -> Sequence[Batch]:
        return scored[0]


@part
class GradientCosine(InfluenceSource):
    """cos(g, g_i) of the gradients of other problems and of each rollout, in [-1, 1].

    Gradients are of a linear map `[D, D]` between the backbone and the head, sketched to `[d, d]`
    by random signs from both sides: first-order influence without a Hessian and without a pass
    back through the model. arXiv 2501.02705 has the whole one; this form is ours.
    """

    problems: Annotated[int, Field(gt=0)] = 16
    every: Annotated[int, Field(gt=0)] = 25
    """Steps for which the direction of the other problems is kept."""
    width: Annotated[int, Field(gt=0)] = 16
    """d."""
    direction: Tensor | None = field(init=False, default=None, repr=False, compare=False)
    """`[d * d]`, the sum of the other problems' sketches over all ranks."""

    def __call__(
        self, scored: Scored, learner: Learner, step: int, others: Callable[[], Scored]
    ) -> Sequence[Batch]:
        if self.direction is None or step % self.every == 0:
            mine = torch.zeros(self.width**2)
            for found in sketches(learner, others(), step, self.width):
                mine += found.sum(0).cpu()
            ranks: list[Tensor] = gather_object([mine])
            self.direction = torch.stack(ranks).sum(0)
        return [
            replace(batch, influence=cosine(sketch, self.direction.to(sketch.device)))
            for batch, sketch in zip(
                scored[0], sketches(learner, scored, step, self.width), strict=True
            )
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"direction": self.direction}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.direction = state["direction"]


def cosine(sketches: Tensor, direction: Tensor) -> Tensor:
    """`[S]` from `[S, d * d]` and `[d * d]`; 0 where one is 0."""
    return torch.nn.functional.cosine_similarity(sketches, direction[None], dim=1)


def sketches(learner: Learner, scored: Scored, step: int, width: int) -> list[Tensor]:
    """`[S, width * width]` of each micro-batch: the sketched gradient of every sequence, without
    the weights that influences decide."""
    found: dict[int, Tensor] = {}
    neutral = [replace(b, influence=torch.zeros_like(b.influence)) for b in scored[0]]
    for context, terms in learner.contexts(step).items():
        chosen = [i for i, batch in enumerate(neutral) if batch.context == context]
        pairs = [(neutral[i], scored[1][i]) for i in chosen]
        # Also without any: ranks add up their denominators together.
        shares = learner.shares(terms, pairs, step)
        for number, (index, (batch, seen)) in enumerate(zip(chosen, pairs, strict=True)):
            with torch.no_grad(), learner.recipe.autocast(learner.accelerator.device):
                hidden = hidden_states(learner.model, batch.student)
            hidden.requires_grad_(True)
            losses = {name: share.loss for name, share in shares.items()}
            scales = {name: share.scales[number] for name, share in shares.items()}
            with learner.recipe.autocast(learner.accelerator.device):
                head = head_of(learner.model)
                rows = student_rows(hidden, head, batch, seen, losses, scales, learner.temperature)
            (pull,) = torch.autograd.grad(rows.total + hidden.sum() * 0.0, hidden)
            found[index] = sketch(pull.float(), hidden.detach().float(), batch, width)
    return [found[index] for index in range(len(neutral))]


def sketch(pull: Tensor, hidden: Tensor, batch: Batch, width: int) -> Tensor:
    """`[S, width * width]` sums over each sequence's tokens of (R pull)(R' hidden)^T, from
    `[N, D]` both."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (2, pull.shape[1], width), generator=generator) * 2.0 - 1.0
    left, right = (side @ sign for side, sign in zip((pull, hidden), signs.to(pull), strict=True))
    outer = (left[:, :, None] * right[:, None, :]).flatten(1)
    return outer.new_zeros(batch.sequences, width * width).index_add(0, batch.sequence, outer)
