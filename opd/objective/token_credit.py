"""Reshapes the advantage of each token by what teachers think of it.

Legend: `n` tokens, `s` the student's probability of the taken token, `q` a view's. Weights cannot
do this: they are at least 0 and enter denominators. All in nats, and detached.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from opd.config import part
from opd.objective.correction import LARGEST_LOG_RATIO
from opd.objective.schedule import Between, Schedule
from opd.types import Scores, Seen, Tokens


class TokenCredit(ABC):
    """An advantage per token. Where a view that it reads is absent, the advantage stays."""

    @property
    @abstractmethod
    def views(self) -> tuple[str, ...]:
        """The teacher views that it reads."""

    @abstractmethod
    def __call__(
        self, advantage: Tensor, logprob: Tensor, batch: Tokens, teachers: Mapping[str, Seen]
    ) -> Tensor:
        """Advantages `[n]`, of any sign, from advantages `[n]` and the student's log-probs `[n]`
        of the taken tokens. Tokens must not depend on each other: they come a few at a time,
        `batch` and `teachers` cut to the same ones."""


@part
class ByGap(TokenCredit):
    """A credit by a token's gap: how much likelier a view finds it than something else does."""

    view: str
    against: tuple[str, ...] = ()
    """Views whose mean probability q is set against, those that are there; none: against s."""
    student: Literal["trained", "sampled"] = "trained"
    """Whose s: the policy's as it is, or as it was when it sampled."""

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view, *self.against)

    @abstractmethod
    def shaped(self, advantage: Tensor, gap: Tensor) -> Tensor:
        """Advantages `[n]` from advantages and gaps `[n]` (nats)."""

    def __call__(
        self, advantage: Tensor, logprob: Tensor, batch: Tokens, teachers: Mapping[str, Seen]
    ) -> Tensor:
        teacher, present = teachers[self.view], teachers[self.view].present
        if self.against:
            other, known = mean_probability([teachers[view] for view in self.against])
            present = present & known
        else:
            other = logprob if self.student == "trained" else batch.sampled_logprob
        return torch.where(present, self.shaped(advantage, teacher.logprob - other), advantage)


@part
class Gap(ByGap):
    """kept * A + scale * gap: the teacher's dense reward beside the verifier's.

    In expectation over s the gap to the student descends the reverse KL. Credits add up: beside a
    gap of 1 to the student, one of l - 1 against a base model makes what the teacher has gained
    over the base count l-fold (arXiv 2602.12125).
    """

    scale: float = 1.0
    kept: float = 1.0
    floor: float | None = None
    """The least that a gap counts, nats: no token is to outweigh the others. arXiv 2603.11137."""

    def shaped(self, advantage: Tensor, gap: Tensor) -> Tensor:
        floored = gap if self.floor is None else gap.clamp(min=self.floor)
        return self.kept * advantage + self.scale * floored


@part
class Magnitude(ByGap):
    """A ((1 - share) + share * clip(exp(sign(A) gap), 1 - bound, 1 + bound)): the verifier sets the
    sign, the teacher the size. arXiv 2604.03128."""

    share: Annotated[Schedule, Between(0, 1)]
    bound: Annotated[float, Field(gt=0, lt=1)] = 0.2

    def shaped(self, advantage: Tensor, gap: Tensor) -> Tensor:
        signed = (advantage.sign() * gap).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        size = signed.exp().clamp(1 - self.bound, 1 + self.bound)
        return advantage * (1 + self.share.now * (size - 1))


@part
class Residual(ByGap):
    """A + clip(scale * tanh(gap / temperature), -bound, bound), held at 0 where it would turn A
    round: what tells apart responses of one reward. arXiv 2606.11709."""

    scale: float = 0.5
    temperature: Annotated[float, Field(gt=0)] = 0.02
    """Nats."""
    bound: Annotated[float, Field(gt=0)] = 2.0

    def shaped(self, advantage: Tensor, gap: Tensor) -> Tensor:
        moved = (self.scale * (gap / self.temperature).tanh()).clamp(-self.bound, self.bound)
        return advantage.sign() * (advantage.sign() * (advantage + moved)).clamp(min=0.0)


@part
class Repulsion(ByGap):
    """A - scale * (softplus(gap) - log 2) / 2: away from the teacher, where it finds a token
    unlikely by no more than scale * 0.35. arXiv 2605.11609.

    Never without a verdict beside it.
    """

    scale: Schedule

    def shaped(self, advantage: Tensor, gap: Tensor) -> Tensor:
        return advantage - self.scale.now * (softplus(gap) - math.log(2)) / 2


def mean_probability(sides: Sequence[Seen | Scores]) -> tuple[Tensor, Tensor]:
    """Log of the mean probability `[n]` over those sides that are present, 0 where none is; and
    `[n]` whether one is."""
    present = torch.stack([side.present for side in sides])
    logprob = torch.stack([side.logprob for side in sides]).masked_fill(~present, -torch.inf)
    known = present.any(0)
    mean = logprob.logsumexp(0) - present.sum(0).clamp(min=1).log()
    return mean.masked_fill(~known, 0.0), known
