"""Makes up for tokens that another policy drew than the one being trained.

A correction multiplies a loss; unlike a weight it never enters a denominator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

from pydantic import Field
from torch import Tensor

from opd.config import part

LARGEST_LOG_RATIO = 20.0
"""Log ratios are held within this many nats, so that their exponentials stay finite."""


class Correction(ABC):
    """One factor per drawn token."""

    @abstractmethod
    def __call__(self, logprob: Tensor, sampled_logprob: Tensor) -> Tensor:
        """Factors `[n]`, at least 0 and detached, from the drawn tokens' log-probs `[n]` under the
        trained and under the sampling policy, both in nats at the sampling temperature."""


class Importance(Correction):
    """Trained / sampling probability, bounded; a token that was written down, not sampled (NaN), is
    left as it is."""

    @abstractmethod
    def bounded(self, factor: Tensor) -> Tensor:
        """Factors `[n]` from ratios `[n]`."""

    def __call__(self, logprob: Tensor, sampled_logprob: Tensor) -> Tensor:
        factor = ratio(logprob.detach(), sampled_logprob.detach())
        return self.bounded(factor).masked_fill(sampled_logprob.isnan(), 1.0)


@part
class TruncatedImportance(Importance):
    """min(trained / sampling probability, cap) for each token. arXiv 2601.20802."""

    cap: Annotated[float, Field(gt=0)] = 2.0

    def bounded(self, factor: Tensor) -> Tensor:
        return factor.clamp(max=self.cap)


@part
class MaskedImportance(Importance):
    """trained / sampling probability where it lies from `low` to `high`, 0 elsewhere: what another
    policy drew far too rarely or too often teaches nothing. The bound is TRL's default."""

    low: Annotated[float, Field(ge=0)] = 0.0
    high: Annotated[float, Field(gt=0)] = 3.0

    def bounded(self, factor: Tensor) -> Tensor:
        return factor * ((factor >= self.low) & (factor <= self.high))


def ratio(logprob: Tensor, reference: Tensor) -> Tensor:
    """exp(logprob - reference) with the exponent held within 20 nats, `[n]` from two `[n]`."""
    return (logprob - reference).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
