"""Losses against a teacher with another tokenizer, a span of text at a time.

A span is the shortest run of tokens that ends where a token of the other side ends too. Its
distribution is that of one of its tokens, the last or the first, times the probability of its other
tokens, so a row need not sum to one. Legend: `g` spans, `V` the student's vocabulary, `W` the
teacher's, `M` entries of both.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from opd.config import part
from opd.objective.divergence import JSD, Divergence
from opd.objective.loss import Loss


class SpanLoss(Loss):
    """A loss of whole distributions over two vocabularies."""

    view: str

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    @abstractmethod
    def spans(self, student: Tensor, teacher: Tensor, shared: Tensor) -> Tensor:
        """Losses `[g]` from log-probs `[g, V]`, with gradients, and `[g, W]`, and the ids `[M, 2]`
        of the entries that are the same text on both sides."""


@part
class SortedDistance(SpanLoss):
    """sum |sort(p_S) - sort(p_T)|: the shapes of two distributions, whatever their entries are.
    arXiv 2402.12030.

    It is 0 where both hold the same probabilities for other tokens: what is said does not count.
    """

    view: str

    def spans(self, student: Tensor, teacher: Tensor, shared: Tensor) -> Tensor:
        return sorted_distance(student, teacher)


@part
class MatchedDistance(SpanLoss):
    """w D(shared entries) + (1 - w) sum |sort(p_S) - sort(p_T)| over the other entries.

    The divergence is of the shared slices as they are, not brought to sum to one. The hybrid loss
    of TRL's trainer over 2402.12030; JSD 1/2 as there.
    """

    view: str
    divergence: Divergence = field(default_factory=JSD)
    matched_weight: Annotated[float, Field(ge=0, le=1)] | None = None
    """w; null is the share of the teacher's vocabulary that is shared."""

    def spans(self, student: Tensor, teacher: Tensor, shared: Tensor) -> Tensor:
        mine, theirs = shared.unbind(-1)
        weight = self.matched_weight
        if weight is None:
            weight = len(shared) / teacher.shape[-1]
        matched = self.divergence(student[:, mine], teacher[:, theirs])
        rest = sorted_distance(without(student, mine), without(teacher, theirs))
        return weight * matched + (1 - weight) * rest


def sorted_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """`[g]` from log-probs `[g, V]` and `[g, W]`, the smaller vocabulary padded with zeros."""
    sides = [side.exp().sort(-1, descending=True).values for side in (student, teacher)]
    width = max(side.shape[-1] for side in sides)
    first, second = (pad(side, (0, width - side.shape[-1])) for side in sides)
    return (first - second).abs().sum(-1)


def without(side: Tensor, ids: Tensor) -> Tensor:
    """`[g, V - M]`: the columns of `[g, V]` but for `ids` `[M]`."""
    kept = torch.ones(side.shape[-1], dtype=torch.bool, device=side.device)
    kept[ids] = False
    return side[:, kept]
