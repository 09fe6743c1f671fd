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


class Probs:
    """Rows of next-token probabilities `[n, K]`, and their logs."""

    def __init__(
        self, log: Tensor, probs: Tensor | None = None, *, may_exclude: bool = True
    ) -> None:
        self.log = log
        self._probs = probs
        self.may_exclude = may_exclude
        """Whether some probability may be 0; a log of -inf costs two more reads."""

    @property
    def probs(self) -> Tensor:
        """Computed once; not to be written to."""
        if self._probs is None:
            self._probs = self.log.exp()
        return self._probs


class Parts(NamedTuple):
    """A sum entry by entry, each `[n, K]`."""

    entries: Tensor
    """The summands."""
    slopes: Tensor
    """Their derivatives in the student's log-probs, taken as independent numbers."""


def kl_entries(first: Probs, second: Tensor) -> Tensor:
    """`a (log a - log b)`, `[n, K]`, from a and log b; 0 where a is 0."""
    entries = (first.log - second).mul_(first.probs)
    return entries.masked_fill_(first.log.isneginf(), 0.0) if first.may_exclude else entries


def log_mixture(first: Tensor, second: Tensor, second_share: float) -> Tensor:
    """`log((1 - share) a + share b)`, `[n, K]` from two `[n, K]` tables of probabilities."""
    return first.lerp(second, second_share).clamp_(min=LEAST).log_()


class _Entries(torch.autograd.Function):
    """Summands with the gradient written out: nothing but one table is kept for the backward."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, student: Tensor, target: Tensor, divergence: Divergence, balanced: bool
    ) -> Tensor:
        sides = Probs(student), Probs(target)
        entries, slopes = divergence.parts(*sides)
        if balanced:
            mass, mass_slopes = divergence.mass(*sides)
            entries, slopes = entries + mass, slopes + mass_slopes
        ctx.save_for_backward(slopes)
        return entries

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, pull: Tensor
    ) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        # A summand may be infinite where nothing pulls at it, and 0 * inf is NaN.
        return (pull * slopes).masked_fill_(pull == 0, 0.0), None, None, None


class Divergence(ABC):
    """Distance between normalised rows: at least 0, and 0 only where they agree."""

    @abstractmethod
    def parts(self, student: Probs, target: Probs) -> Parts:
        """The divergence of tables `[n, K]`, without autograd; new tensors, to be overwritten."""

    def mass(self, student: Probs, target: Probs) -> Parts:
        """What makes every summand at least 0, and sums to 0 where both rows sum to one."""
        nothing = torch.zeros_like(student.log)
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

    def parts(self, student: Probs, target: Probs) -> Parts:
        return Parts(kl_entries(target, student.log), -target.probs)

    def mass(self, student: Probs, target: Probs) -> Parts:
        return Parts(student.probs - target.probs, student.probs)


@part
class CrossEntropy(Divergence):
    """-sum q log s = KL(q || s) + H(q): the gradient of ForwardKL, and a value that is not 0 where
    the rows agree. arXiv 2501.16937 steers by it."""

    def parts(self, student: Probs, target: Probs) -> Parts:
        entries = (student.log * target.probs).neg_()
        if target.may_exclude:
            entries = entries.masked_fill_(target.log.isneginf(), 0.0)
        return Parts(entries, -target.probs)


@part
class ReverseKL(Divergence):
    """KL(s || q): seeks the teacher's mode."""

    def parts(self, student: Probs, target: Probs) -> Parts:
        entries = kl_entries(student, target.log)
        return Parts(entries, entries + student.probs)

    def mass(self, student: Probs, target: Probs) -> Parts:
        return Parts(target.probs - student.probs, -student.probs)


@part
class JSD(Divergence):
    """b KL(q || m) + (1 - b) KL(s || m) with m = b q + (1 - b) s. arXiv 2306.13649.

    It vanishes as b nears 0 or 1: for these ends use ForwardKL and ReverseKL. The mass terms of the
    two KLs cancel entry by entry.
    """

    teacher_weight: Share = 0.5

    def parts(self, student: Probs, target: Probs) -> Parts:
        b = self.teacher_weight
        mixture = log_mixture(student.probs, target.probs, b)
        from_student = kl_entries(student, mixture).mul_(1 - b)
        from_teacher = kl_entries(target, mixture)
        return Parts(torch.add(from_student, from_teacher, alpha=b), from_student)


@part
class SkewKL(Divergence):
    """KL(q || skew q + (1 - skew) s): forward KL with bounded ratios. arXiv 2402.03898."""

    skew: Share = 0.1
    """Share of the teacher in the mixture."""

    def parts(self, student: Probs, target: Probs) -> Parts:
        mixture = log_mixture(student.probs, target.probs, self.skew)
        slopes = (student.probs * target.probs * (-mixture).exp_()).mul_(self.skew - 1)
        return Parts(kl_entries(target, mixture), slopes)

    def mass(self, student: Probs, target: Probs) -> Parts:
        rest = 1 - self.skew
        return Parts((student.probs - target.probs) * rest, student.probs * rest)


@part
class SkewReverseKL(Divergence):
    """KL(s || skew s + (1 - skew) q): reverse KL with bounded ratios. arXiv 2402.03898."""

    skew: Share = 0.1
    """Share of the student in the mixture."""

    def parts(self, student: Probs, target: Probs) -> Parts:
        s = student.probs
        mixture = log_mixture(target.probs, s, self.skew)
        entries = kl_entries(student, mixture)
        return Parts(entries, entries + s - (s * s * (-mixture).exp_()).mul_(self.skew))

    def mass(self, student: Probs, target: Probs) -> Parts:
        rest = 1 - self.skew
        return Parts((target.probs - student.probs) * rest, student.probs * -rest)


@part
class HeldSkewReverseKL(SkewReverseKL):
    """SkewReverseKL with a mixture that is held: the value, and the gradient of the reverse KL to
    the mixture as it stands. arXiv 2503.07067."""

    def parts(self, student: Probs, target: Probs) -> Parts:
        mixture = log_mixture(target.probs, student.probs, self.skew)
        entries = kl_entries(student, mixture)
        return Parts(entries, entries + student.probs)

    def mass(self, student: Probs, target: Probs) -> Parts:
        return Parts(super().mass(student, target).entries, -student.probs)


@part
class Renyi(Divergence):
    """log(sum q^order s^(1 - order)) / (order - 1), which nears ForwardKL as the order nears 1 and
    pulls less at what the student hardly says. arXiv 2608.09745.

    The summands, each at least 0, are in proportion to order q + (1 - order) s - q^order
    s^(1 - order).
    """

    order: Share = 0.95

    def parts(self, student: Probs, target: Probs) -> Parts:
        lower = 1 - self.order
        powers = (self.order * target.log + lower * student.log).exp_()
        # What each power lacks of order q + lower s, without cancellation: factored by the larger.
        ratio = (target.log - student.log).nan_to_num(nan=0.0)
        of_target = torch.expm1(-lower * ratio) - lower * torch.expm1(-ratio)
        of_student = torch.expm1(self.order * ratio) - self.order * torch.expm1(ratio)
        lacking = torch.where(ratio > 0, target.probs * of_target, student.probs * of_student)
        total = lacking.sum(-1, keepdim=True)
        per_unit = torch.where(total == 0, 1.0, torch.log1p(total) / total) / -lower
        return Parts(lacking * per_unit, powers / -(1 + total))


class Blend(Divergence):
    """Forward and reverse KL at once, in shares that carry no gradient."""

    @abstractmethod
    def forward_share(self, student: Probs, target: Probs) -> Tensor:
        """How much forward KL counts in each row `[n, 1]` or entry `[n, K]`."""

    def reverse_share(self, forward_share: Tensor) -> Tensor:
        """How much reverse KL counts beside it."""
        return 1 - forward_share

    def parts(self, student: Probs, target: Probs) -> Parts:
        share = self.forward_share(student, target)
        forward, reverse = ForwardKL().parts(student, target), ReverseKL().parts(student, target)
        return blended(forward, share, reverse, self.reverse_share(share))

    def mass(self, student: Probs, target: Probs) -> Parts:
        share = self.forward_share(student, target)
        forward, reverse = ForwardKL().mass(student, target), ReverseKL().mass(student, target)
        return blended(forward, share, reverse, self.reverse_share(share))


def blended(first: Parts, share: Tensor, second: Parts, rest: Tensor) -> Parts:
    """share first + rest second; where `first` has no share it does not count, not even where it is
    infinite."""

    def of(one: Tensor, other: Tensor) -> Tensor:
        return (share * one).masked_fill(share == 0, 0.0) + rest * other

    return Parts(of(first.entries, second.entries), of(first.slopes, second.slopes))


@part
class MixedKL(Blend):
    """share KL(q || s) + (1 - share) KL(s || q)."""

    share: Share = 0.5

    def forward_share(self, student: Probs, target: Probs) -> Tensor:
        return student.log.new_full((1, 1), self.share)


@part
class EntropyAware(Blend):
    """Reverse KL, and beside it forward KL where the target's entropy exceeds `above`: modes are
    kept where there are several. arXiv 2603.07079."""

    above: Annotated[float, Field(ge=0)] = 0.8
    """Nats."""

    def forward_share(self, student: Probs, target: Probs) -> Tensor:
        entropy = -kl_entries(target, torch.zeros_like(target.log)).sum(-1, keepdim=True)
        return (entropy > self.above).to(student.log.dtype)

    def reverse_share(self, forward_share: Tensor) -> Tensor:
        return torch.ones_like(forward_share)


@part
class Entrywise(Blend):
    """Forward KL by q / (q + s) and reverse KL by s / (q + s), entry by entry: what the teacher
    wants raised is raised by the one, what it wants lowered is lowered by the other.
    arXiv 2505.16297. The value is KL(q || s) + KL(s || q); the gradient is not (ours: shares are
    detached)."""

    def forward_share(self, student: Probs, target: Probs) -> Tensor:
        return target.probs / (target.probs + student.probs).clamp(min=LEAST)

    def mass(self, student: Probs, target: Probs) -> Parts:
        # The summands are (q - s) log(q / s): none is below 0.
        return Divergence.mass(self, student, target)


@part
class HeadTail(Blend):
    """Forward KL by the gap |q - s| in the target's head, reverse KL by that in its tail, which is
    the least probable entries of less than `tail` together. arXiv 2404.02657 (ours: shares are
    detached, a half each where both gaps are 0)."""

    tail: Share = 0.5

    def forward_share(self, student: Probs, target: Probs) -> Tensor:
        rising, order = target.probs.sort(-1)
        in_tail = (rising.cumsum(-1) < self.tail).to(rising.dtype)
        gap = (target.probs - student.probs).abs()
        of_tail = (gap.gather(-1, order) * in_tail).sum(-1, keepdim=True)
        of_head = (gap.gather(-1, order) * (1 - in_tail)).sum(-1, keepdim=True)
        total = of_head + of_tail
        return torch.where(total > 0, of_head / total.clamp(min=LEAST), 0.5)


@part
class TotalVariation(Divergence):
    """Half of |q - s| summed: the largest difference in the probability of any event, at most 1."""

    def parts(self, student: Probs, target: Probs) -> Parts:
        gap = student.probs - target.probs
        return Parts(gap.abs() / 2, student.probs * gap.sign() / 2)
