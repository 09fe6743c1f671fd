"""What a student is moved toward, where that is not simply what one view says.

Legend: `n` rows, `V` vocabulary, `s` the student's probabilities, `q` a view's. Everything is
detached, in nats, and of one temperature. A vocabulary entry that is excluded (-inf) on any side
that a target multiplies is excluded from the target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import log
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from opd.config import part
from opd.objective.logits import Logits
from opd.objective.schedule import Between, Schedule
from opd.types import Observed

TINY = 1e-8
"""Keeps the ratios of AlignedMean defined where all sides agree (arXiv 2605.20643)."""

LEAST_TEMPERATURE = 1e-3

Views = Annotated[tuple[str, ...], Field(min_length=2)]


class Target(ABC):
    """Makes one row of scores of what several sides say."""

    @property
    @abstractmethod
    def read(self) -> tuple[str, ...]:
        """The teacher views that it reads."""

    @abstractmethod
    def __call__(
        self, student: Tensor, teachers: Mapping[str, Tensor], target_ids: Tensor
    ) -> tuple[Tensor, Observed]:
        """The target's log-probs `[n, V]`, up to a number a row, and metrics, from log-probs
        `[n, V]` and the taken tokens `[n]`."""

    def logits(
        self,
        student: Logits,
        teachers: Mapping[str, Logits],
        target_ids: Tensor,
        temperature: float,
    ) -> tuple[Logits, Observed]:
        """What a loss at `temperature` reads in the place of a view's logits, and metrics."""
        said = {view: teachers[view].log_probs(temperature) for view in self.read}
        found, observed = self(student.measured(temperature), said, target_ids)
        return Logits(temperature * found), observed


@part
class Tempered(Target):
    """`q^(1 / temperature)`: one view, sharper below 1 and flatter above, the student's side as it
    is. Ours."""

    view: str
    temperature: Annotated[Schedule, Between(LEAST_TEMPERATURE)]

    @property
    def read(self) -> tuple[str, ...]:
        return (self.view,)

    def __call__(
        self, student: Tensor, teachers: Mapping[str, Tensor], target_ids: Tensor
    ) -> tuple[Tensor, Observed]:
        return teachers[self.view] / self.temperature.now, {}


@part
class Interpolated(Target):
    """`start^(1 - share) q^share`: part of the way to a view, in logits.

    From the student itself as in arXiv 2501.16937 (there `share` grows with training), or from
    another view, such as the initial model's plain one, as in arXiv 2607.28582.
    """

    view: str
    share: Annotated[Schedule, Between(0, 1)]
    start: str | None = None
    """A view; null is the student as it stands."""

    @property
    def read(self) -> tuple[str, ...]:
        return (self.view,) if self.start is None else (self.start, self.view)

    def __call__(
        self, student: Tensor, teachers: Mapping[str, Tensor], target_ids: Tensor
    ) -> tuple[Tensor, Observed]:
        start = student if self.start is None else teachers[self.start]
        share = self.share.now
        # At an end the other side does not count, not even by what it excludes.
        if share in (0, 1):
            return (teachers[self.view] if share else start), {}
        return (1 - share) * start + share * teachers[self.view], {}


@part
class ArithmeticMean(Target):
    """The mixture of several views: what any of them would say."""

    views: Views

    @property
    def read(self) -> tuple[str, ...]:
        return self.views

    def __call__(
        self, student: Tensor, teachers: Mapping[str, Tensor], target_ids: Tensor
    ) -> tuple[Tensor, Observed]:
        return arithmetic_mean([teachers[view] for view in self.views]), {}


@part
class GeometricMean(Target):
    """What several views agree on: what one of them excludes is excluded."""

    views: Views

    @property
    def read(self) -> tuple[str, ...]:
        return self.views

    def __call__(
        self, student: Tensor, teachers: Mapping[str, Tensor], target_ids: Tensor
    ) -> tuple[Tensor, Observed]:
        return geometric_mean([teachers[view] for view in self.views]), {}


@part
class AlignedMean(Target):
    """The geometric mean, plus as much of what the arithmetic one exceeds it by as the views agree
    about which way to move the student. arXiv 2605.20643 (its paper's gate, over the vocabulary).

    The excess never turns round the direction that the geometric mean gives an entry.
    """

    views: Views

    @property
    def read(self) -> tuple[str, ...]:
        return self.views

    def __call__(
        self, student: Tensor, teachers: Mapping[str, Tensor], target_ids: Tensor
    ) -> tuple[Tensor, Observed]:
        sides = [teachers[view] for view in self.views]
        agreed = geometric_mean(sides)
        excess = (arithmetic_mean(sides) - agreed).clamp_(min=0.0)
        advantage = (agreed - student).abs()
        moved = torch.stack([(side - student).abs() for side in sides]).mean(0)
        alignment = advantage / (moved + TINY)
        proportion = advantage / (advantage + excess + TINY)
        gained = agreed + alignment * proportion * excess
        return gained.masked_fill_(agreed.isneginf() | student.isneginf(), -torch.inf), {}


def arithmetic_mean(sides: Sequence[Tensor]) -> Tensor:
    """Log of the mean of probabilities, `[n, V]` from log-probs."""
    return torch.stack(list(sides)).logsumexp(0) - log(len(sides))


def geometric_mean(sides: Sequence[Tensor]) -> Tensor:
    """Mean of log-probs `[n, V]`; it does not sum to one."""
    return torch.stack(list(sides)).mean(0)
