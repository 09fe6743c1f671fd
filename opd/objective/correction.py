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


@part
class TruncatedImportance(Correction):
    """min(trained / sampling probability, cap) for each token. arXiv 2601.20802.

    A token that was written down, not sampled (NaN), is left as it is.
    """

    cap: Annotated[float, Field(gt=0)] = 2.0

    def __call__(self, logprob: Tensor, sampled_logprob: Tensor) -> Tensor:
        factor = ratio(logprob.detach(), sampled_logprob.detach()).clamp(max=self.cap)
        return factor.masked_fill(sampled_logprob.isnan(), 1.0)


def ratio(logprob: Tensor, reference: Tensor) -> Tensor:
    """exp(logprob - reference) with the exponent held within 20 nats, `[n]` from two `[n]`."""
    return (logprob - reference).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
