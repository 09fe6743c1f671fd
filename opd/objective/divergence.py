"""How far two rows of next-token log-probabilities lie apart.

Legend: `n` rows, `K` support size, `s` the student's probabilities, `q` the target's. All in nats.
Temperatures and detaching are the caller's. A vocabulary entry that both rows exclude (-inf) counts
0 and has gradient 0; one that only the second argument of a KL excludes makes it infinite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from opd.config import part

Share = Annotated[float, Field(gt=0, lt=1)]


LEAST = torch.finfo(torch.float32).tiny
"""What a probability is raised to before its log is taken, so that 0 times it stays 0."""


class Parts(NamedTuple):
    """A sum entry by entry, each `[n, K]`."""

    entries: Tensor
    """The summands."""
    slopes: Tensor
    """Their derivatives in the student's log-probs, taken as independent numbers."""


def times_log_ratio(probs: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`a (log a - log b)`, `[n, K]`, from a and both logs; 0 where a is 0."""
    return (first - second).mul_(probs).masked_fill_(first.isneginf(), 0.0)


def log_mixture(first: Tensor, second: Tensor, second_share: float) -> Tensor:
    """`log((1 - share) a + share b)`, `[n, K]` from two `[n, K]` tables of probabilities."""
    return first.lerp(second, second_share).clamp_(min=LEAST).log_()


class _Entries(torch.autograd.Function):
    """Summands with the gradient written out: nothing but one table is kept for the backward."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, student: Tensor, target: Tensor, divergence: Divergence, balanced: bool
    ) -> Tensor:
        entries, slopes = divergence.parts(student, target)
        if balanced:
            mass, mass_slopes = divergence.mass(student, target)
            entries, slopes = entries + mass, slopes + mass_slopes
        ctx.save_for_backward(slopes)
        return entries

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, pull: Tensor
    ) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return pull * slopes, None, None, None


class Divergence(ABC):
    """Distance between normalised rows: at least 0, and 0 only where they agree."""

    @abstractmethod
    def parts(self, student: Tensor, target: Tensor) -> Parts:
        """The divergence from log-probs `[n, K]`, without autograd."""

    def mass(self, student: Tensor, target: Tensor) -> Parts:
        """What makes every summand at least 0, and sums to 0 where both rows sum to one."""
        nothing = torch.zeros_like(student)
        return Parts(nothing, nothing)

    def entries(self, student: Tensor, target: Tensor) -> Tensor:
        """Summands `[n, K]`, which may be negative, from log-probs `[n, K]`."""
        return _Entries.apply(student, target, self, False)  # pyright: ignore

    def nonnegative_entries(self, student: Tensor, target: Tensor) -> Tensor:
        """Summands `[n, K]`, each at least 0, with the same sum where both rows sum to one."""
        return _Entries.apply(student, target, self, True)  # pyright: ignore

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """The divergence of each row, `[n]` nats, from log-probs `[n, K]`."""
        return self.entries(student, target).sum(-1)


@part
class ForwardKL(Divergence):
    """KL(q || s): covers whatever the teacher would say. The gradient in the logits is s - q."""

    def parts(self, student: Tensor, target: Tensor) -> Parts:
        q = target.exp()
        return Parts(times_log_ratio(q, target, student), -q)

    def mass(self, student: Tensor, target: Tensor) -> Parts:
        s = student.exp()
        return Parts(s - target.exp(), s)


@part
class ReverseKL(Divergence):
    """KL(s || q): seeks the teacher's mode."""

    def parts(self, student: Tensor, target: Tensor) -> Parts:
        s = student.exp()
        entries = times_log_ratio(s, student, target)
        return Parts(entries, s.add_(entries))

    def mass(self, student: Tensor, target: Tensor) -> Parts:
        s = student.exp()
        return Parts(target.exp() - s, -s)


@part
class JSD(Divergence):
    """b KL(q || m) + (1 - b) KL(s || m) with m = b q + (1 - b) s. arXiv 2306.13649.

    It vanishes as b nears 0 or 1: for these ends use ForwardKL and ReverseKL. The mass terms of the
    two KLs cancel entry by entry.
    """

    teacher_weight: Share = 0.5

    def parts(self, student: Tensor, target: Tensor) -> Parts:
        b, s, q = self.teacher_weight, student.exp(), target.exp()
        mixture = log_mixture(s, q, b)
        from_student = times_log_ratio(s, student, mixture).mul_(1 - b)
        from_teacher = times_log_ratio(q, target, mixture).mul_(b)
        return Parts(from_teacher.add_(from_student), from_student)


@part
class SkewKL(Divergence):
    """KL(q || skew q + (1 - skew) s): forward KL with bounded ratios. arXiv 2402.03898."""

    skew: Share = 0.1
    """Share of the teacher in the mixture."""

    def parts(self, student: Tensor, target: Tensor) -> Parts:
        s, q = student.exp(), target.exp()
        mixture = log_mixture(s, q, self.skew)
        slopes = (s * q * (-mixture).exp()).mul_(self.skew - 1)
        return Parts(times_log_ratio(q, target, mixture), slopes)

    def mass(self, student: Tensor, target: Tensor) -> Parts:
        s = student.exp() * (1 - self.skew)
        return Parts(s - target.exp() * (1 - self.skew), s)


@part
class SkewReverseKL(Divergence):
    """KL(s || skew s + (1 - skew) q): reverse KL with bounded ratios. arXiv 2402.03898."""

    skew: Share = 0.1
    """Share of the student in the mixture."""

    def parts(self, student: Tensor, target: Tensor) -> Parts:
        s, q = student.exp(), target.exp()
        mixture = log_mixture(q, s, self.skew)
        entries = times_log_ratio(s, student, mixture)
        return Parts(entries, entries + s - (s * s * (-mixture).exp()).mul_(self.skew))

    def mass(self, student: Tensor, target: Tensor) -> Parts:
        s = student.exp() * (1 - self.skew)
        return Parts(target.exp() * (1 - self.skew) - s, -s)


@part
class TotalVariation(Divergence):
    """Half of |q - s| summed: the largest difference in the probability of any event, at most 1."""

    def parts(self, student: Tensor, target: Tensor) -> Parts:
        s = student.exp()
        gap = s - target.exp()
        return Parts(gap.abs() / 2, s * gap.sign() / 2)
