"""One summand of the objective: a loss, the tokens that it counts, and its share.

Legend: `N` action tokens, `S` sequences of a micro-batch. A term's value is its numerator over its
mass, both summed over all micro-batches and ranks of an update before they are divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from opd.config import part
from opd.objective.loss import Loss, SequenceLoss
from opd.objective.schedule import Constant, Schedule
from opd.objective.weight import UpdateWeight, Weight
from opd.types import Batch, Scores


@part
class Term:
    """coefficient * sum(b w loss) / mass, where b is what the average gives to a token."""

    loss: Loss
    weights: tuple[Weight, ...] = ()
    """They multiply."""
    coefficient: Schedule = field(default_factory=lambda: Constant(value=1.0))
    average: Literal["token", "sequence", "weighted_sequence", "budget"] = "token"
    """`token`: all tokens alike; `sequence`: all sequences alike (arXiv 2402.03300);
    `weighted_sequence`: a sequence's sum over its weights, at least 1 (arXiv 2605.06597, which then
    takes the mean: `denominator: count`); `budget`: over the longest response allowed (arXiv
    2503.20783)."""
    denominator: Literal["weights", "count", "all"] = "weights"
    """`weights`: a weighted mean; `count`: small weights make small updates; `all`: so do weights
    of 0, as every token of the update counts. `budget` always counts sequences."""
    pool: str | None = None
    """Active terms that name the same pool share one denominator: each is its own mean times its
    share of what the pool counts, tokens or sequences as they average. arXiv 2604.02288."""

    context: str = "student"
    """The prompt behind which the policy is trained: the student's, or that of the view so named;
    responses without that view drop out. Sampling, grading and evaluation see the student's."""

    exit: Annotated[int, Field(gt=0)] | None = None
    """The layer (from 1) whose states are given to the head, through the last norm, in place of the
    last one's: an early exit that is trained beside the whole. Null is the last."""

    @property
    def divides_by_weights(self) -> bool:
        """Whether a common factor of all weights cancels, or may."""
        return self.denominator == "weights" or self.average == "weighted_sequence"

    @property
    def views(self) -> tuple[str, ...]:
        """The teacher views that the loss and the weights read, each once."""
        read = [*self.loss.views, *(view for weight in self.weights for view in weight.views)]
        return tuple(dict.fromkeys(read))

    @property
    def spans_update(self) -> bool:
        """Whether its tokens depend on those of other micro-batches."""
        parts = (self.loss, *self.weights)
        return any(isinstance(each, SequenceLoss | UpdateWeight) for each in parts)

    def weight(self, batch: Batch, scores: Mapping[str, Scores]) -> Tensor:
        """The product of the weights `[N]`, and 0 where a view that the loss needs is absent."""
        product = torch.ones_like(batch.sampled_logprob)
        for weight in self.weights:
            product = product * weight(batch, scores)
        for view in self.loss.needed:
            product = product * scores[view].present
        return product

    def scale(self, weight: Tensor, batch: Batch, max_response_tokens: int) -> Tensor:
        """What each loss is multiplied with before they are summed, `[N]` from weights `[N]`."""
        return self._share(weight, batch, max_response_tokens) * weight

    def numerator(
        self, per_token: Tensor, weight: Tensor, batch: Batch, max_response_tokens: int
    ) -> Tensor:
        """sum(b w loss), a scalar with gradients, from losses and weights `[N]`."""
        scale = self.scale(weight, batch, max_response_tokens)
        # A loss may be infinite where nothing is asked of it, and 0 * inf is NaN.
        return (scale * per_token.masked_fill(scale == 0, 0.0)).sum()

    def mass(self, weight: Tensor, batch: Batch, max_response_tokens: int) -> Tensor:
        """What the numerator is divided by, a scalar, from weights `[N]`."""
        if self.average == "budget" or self.denominator == "count":
            return self.count(weight, batch)
        if self.denominator == "all":
            return self.count(torch.ones_like(weight), batch)
        return (self._share(weight, batch, max_response_tokens) * weight).sum()

    def count(self, weight: Tensor, batch: Batch) -> Tensor:
        """How many tokens have a weight `[N]` above 0, or sequences that hold one unless tokens are
        averaged: a scalar."""
        counted = weight > 0
        if self.average != "token":
            counted = _sums(counted, batch) > 0
        return counted.sum().to(weight.dtype)

    def _share(self, weight: Tensor, batch: Batch, max_response_tokens: int) -> Tensor:
        if self.average in ("sequence", "weighted_sequence"):
            counted = weight > 0 if self.average == "sequence" else weight
            return 1 / _sums(counted, batch).clamp(min=1)[batch.sequence]
        share = 1.0 if self.average == "token" else 1 / max_response_tokens
        return torch.full_like(batch.sampled_logprob, share)


def _sums(values: Tensor, batch: Batch) -> Tensor:
    """What the tokens `[N]` add up to in each sequence, `[S]`; how many are True."""
    none = torch.zeros_like(batch.reward)
    return none.index_add(0, batch.sequence, values.to(none.dtype))
