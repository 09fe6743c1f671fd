"""Losses of the last layer's hidden states.

Legend: `n` counted tokens, `D` hidden width, `h` the student's states, `g` a view's, detached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from opd.config import part
from opd.errors import RecipeError
from opd.head import at_least_single
from opd.objective.loss import HiddenLoss, Observed
from opd.types import Batch


@part
class HiddenSquares(HiddenLoss):
    """|h - g|^2: what the student computes stays near to what a view computes. arXiv 2605.06597
    takes the mean over the width, 2210.02871 the sum."""

    view: str
    over: Literal["mean", "sum"] = "mean"
    """Of the D squares."""

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    def states(
        self, hidden: Tensor, batch: Batch, teachers: Mapping[str, Tensor]
    ) -> tuple[Tensor, Observed]:
        states, theirs = pair_of(hidden, teachers[self.view], self.view)
        squares = (states - theirs).square()
        return (squares.mean(-1) if self.over == "mean" else squares.sum(-1)), {}


@part
class HiddenInformation(HiddenLoss):
    """-(1 + f_jj - log m_j - mean_i e^f_ij / m_j), m_j = alpha mean_i e^f_ij + 1 - alpha: minus a
    lower bound, in nats, of what the student's states tell of a view's; alpha 1 is InfoNCE.

    f_ij = cosine(h_i, g_j) / temperature over the tokens i and j of one response: critic and pairs
    are ours, the bound is that of arXiv 1905.06922, by which 2109.11105 distils.
    """

    view: str
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
    temperature: Annotated[float, Field(gt=0)] = 0.1

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    def states(
        self, hidden: Tensor, batch: Batch, teachers: Mapping[str, Tensor]
    ) -> tuple[Tensor, Observed]:
        mine, theirs = pair_of(hidden, teachers[self.view], self.view)
        mine, theirs = normalize(mine, dim=-1), normalize(theirs, dim=-1)
        found = [mine.new_zeros(0)]
        for number in range(batch.sequences):
            here = batch.sequence == number
            if here.any():
                found.append(-self.information(mine[here] @ theirs[here].T / self.temperature))
        return torch.cat(found), {}

    def information(self, critic: Tensor) -> Tensor:
        """The bound `[K]`, whose mean over the tokens it is, from the critic `[K, K]`."""
        mean = critic.logsumexp(0) - math.log(len(critic))
        baseline = mean
        if self.alpha < 1:
            floor = torch.full_like(mean, math.log(1 - self.alpha))
            scaled = mean + math.log(self.alpha) if self.alpha > 0 else floor - torch.inf
            baseline = torch.logaddexp(scaled, floor)
        return 1 + critic.diagonal() - baseline - (mean - baseline).exp()


def pair_of(hidden: Tensor, theirs: Tensor, view: str) -> tuple[Tensor, Tensor]:
    """Both sides `[n, D]` in at least float32. Raises RecipeError where the widths differ."""
    if hidden.shape != theirs.shape:
        raise RecipeError(
            f"teacher.weights: the states of the view {view!r} are {theirs.shape[-1]} wide, the "
            f"student's {hidden.shape[-1]}; choose a teacher of the student's width"
        )
    return at_least_single(hidden), at_least_single(theirs)
