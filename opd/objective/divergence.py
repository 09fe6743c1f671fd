"""How far two rows of next-token log-probabilities lie apart.

Legend: `n` rows, `K` support size, `s` the student's probabilities, `q` the target's. All in nats.
Temperatures and detaching are the caller's. A vocabulary entry that both rows exclude (-inf) counts
0 and has gradient 0; one that only the second argument of a KL excludes makes it infinite.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from opd.config import part

Share = Annotated[float, Field(gt=0, lt=1)]


def kl_entries(first: Tensor, second: Tensor) -> Tensor:
    """Entries `a (log a - log b)` of KL(a || b), `[n, K]` from two `[n, K]` tables of logs."""
    empty = torch.isneginf(first)
    # Filled before the product: 0 * inf is NaN, and masking afterwards leaves NaN in the gradient.
    first, second = first.masked_fill(empty, 0.0), second.masked_fill(empty, 0.0)
    return first.exp() * (first - second)


def balanced_kl_entries(first: Tensor, second: Tensor) -> Tensor:
    """Entries `a (log a - log b) + b - a`, each at least 0, `[n, K]`."""
    return kl_entries(first, second) + second.exp() - first.exp()


def log_mixture(first: Tensor, second: Tensor, second_share: float) -> Tensor:
    """`log((1 - share) a + share b)`, `[n, K]` from two `[n, K]` tables of logs."""
    empty = torch.isneginf(first) & torch.isneginf(second)
    first, second = first.masked_fill(empty, 0.0), second.masked_fill(empty, 0.0)
    mixed = torch.logaddexp(first + math.log1p(-second_share), second + math.log(second_share))
    return mixed.masked_fill(empty, -math.inf)


class Divergence(ABC):
    """Distance between normalised rows: at least 0, and 0 only where they agree."""

    @abstractmethod
    def entries(self, student: Tensor, target: Tensor) -> Tensor:
        """Summands `[n, K]`, which may be negative, from log-probs `[n, K]`."""

    @abstractmethod
    def nonnegative_entries(self, student: Tensor, target: Tensor) -> Tensor:
        """Summands `[n, K]`, each at least 0, with the same sum where both rows sum to one."""

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """The divergence of each row, `[n]` nats, from log-probs `[n, K]`."""
        return self.entries(student, target).sum(-1)


@part
class ForwardKL(Divergence):
    """KL(q || s): covers whatever the teacher would say. The gradient in the logits is s - q."""

    def entries(self, student: Tensor, target: Tensor) -> Tensor:
        return kl_entries(target, student)

    def nonnegative_entries(self, student: Tensor, target: Tensor) -> Tensor:
        return balanced_kl_entries(target, student)


@part
class ReverseKL(Divergence):
    """KL(s || q): seeks the teacher's mode."""

    def entries(self, student: Tensor, target: Tensor) -> Tensor:
        return kl_entries(student, target)

    def nonnegative_entries(self, student: Tensor, target: Tensor) -> Tensor:
        return balanced_kl_entries(student, target)


@part
class JSD(Divergence):
    """b KL(q || m) + (1 - b) KL(s || m) with m = b q + (1 - b) s. arXiv 2306.13649.

    It vanishes as b nears 0 or 1: for these ends use ForwardKL and ReverseKL.
    """

    teacher_weight: Share = 0.5

    def entries(self, student: Tensor, target: Tensor) -> Tensor:
        b = self.teacher_weight
        mixture = log_mixture(student, target, b)
        return b * kl_entries(target, mixture) + (1 - b) * kl_entries(student, mixture)

    def nonnegative_entries(self, student: Tensor, target: Tensor) -> Tensor:
        # The mass terms of the two KLs cancel entry by entry.
        return self.entries(student, target)


@part
class SkewKL(Divergence):
    """KL(q || skew q + (1 - skew) s): forward KL with bounded ratios. arXiv 2402.03898."""

    skew: Share = 0.1
    """Share of the teacher in the mixture."""

    def entries(self, student: Tensor, target: Tensor) -> Tensor:
        return kl_entries(target, log_mixture(student, target, self.skew))

    def nonnegative_entries(self, student: Tensor, target: Tensor) -> Tensor:
        return balanced_kl_entries(target, log_mixture(student, target, self.skew))


@part
class SkewReverseKL(Divergence):
    """KL(s || skew s + (1 - skew) q): reverse KL with bounded ratios. arXiv 2402.03898."""

    skew: Share = 0.1
    """Share of the student in the mixture."""

    def entries(self, student: Tensor, target: Tensor) -> Tensor:
        return kl_entries(student, log_mixture(target, student, self.skew))

    def nonnegative_entries(self, student: Tensor, target: Tensor) -> Tensor:
        return balanced_kl_entries(student, log_mixture(target, student, self.skew))


@part
class TotalVariation(Divergence):
    """Half of |q - s| summed: the largest difference in the probability of any event, at most 1."""

    def entries(self, student: Tensor, target: Tensor) -> Tensor:
        return (target.exp() - student.exp()).abs() / 2

    def nonnegative_entries(self, student: Tensor, target: Tensor) -> Tensor:
        return self.entries(student, target)
