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
from opd.objective.divergence import JSD
from opd.objective.logits import Logits
from opd.objective.schedule import Between, Schedule
from opd.types import Observed

TINY = 1e-8
"""Keeps the ratios of AlignedMean defined where all sides agree (arXiv 2605.20643)."""

LEAST_TEMPERATURE = 1e-3
BISECTIONS = 20
"""As many as arXiv 2602.02244 takes."""


class Target(ABC):
    """Makes one row of scores of what several sides say."""

    @property
    @abstractmethod
    def read(self) -> tuple[str, ...]:
        """The teacher views that it reads."""

    @property
    def trusts_text(self) -> bool:
        """Whether it takes the taken token for the truth."""
        return False

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
class OfSeveral(Target):
    """What several views say together; of a token that some of them are absent from, nothing. The
    view `FirstOf` gives one that may be absent something to fall back on."""

    views: Annotated[tuple[str, ...], Field(min_length=2)]

    @property
    def read(self) -> tuple[str, ...]:
        return self.views


@part
class ArithmeticMean(OfSeveral):
    """The mixture of several views: what any of them would say."""

    def __call__(
        self, student: Tensor, teachers: Mapping[str, Tensor], target_ids: Tensor
    ) -> tuple[Tensor, Observed]:
        return arithmetic_mean([teachers[view] for view in self.views]), {}


@part
class GeometricMean(OfSeveral):
    """What several views agree on: what one of them excludes is excluded."""

    def __call__(
        self, student: Tensor, teachers: Mapping[str, Tensor], target_ids: Tensor
    ) -> tuple[Tensor, Observed]:
        return geometric_mean([teachers[view] for view in self.views]), {}


@part
class AlignedMean(OfSeveral):
    """The geometric mean, plus as much of what the arithmetic one exceeds it by as the views agree
    about which way to move the student. arXiv 2605.20643 (its paper's gate, over the vocabulary).

    The excess never turns round the direction that the geometric mean gives an entry.
    """

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


@part
class Mixed(Target):
    """`(1 - share) start + share q`: what one side or the other would say.

    From the taken token itself, on written text, a teacher's softening of the ground truth: arXiv
    2102.13088 (a fixed share) and 2006.12000 (one that grows). From the frozen base, an anchor that
    keeps repeated self-distillation from drifting (2601.13100).
    """

    view: str
    share: Annotated[Schedule, Between(0, 1)]
    start: str | None = None
    """A view; null is the taken token, with certainty."""

    @property
    def read(self) -> tuple[str, ...]:
        return (self.view,) if self.start is None else (self.start, self.view)

    @property
    def trusts_text(self) -> bool:
        return self.start is None

    def __call__(
        self, student: Tensor, teachers: Mapping[str, Tensor], target_ids: Tensor
    ) -> tuple[Tensor, Observed]:
        said = teachers[self.view]
        start = certain(target_ids, said) if self.start is None else teachers[self.start]
        return mixture(start, said, torch.full_like(said[:, :1], self.share.now)), {}


@part
class Sheltered(Target):
    """`(1 - u) q + u anchor` where the student's entropy exceeds `above`, the view elsewhere; u =
    sigmoid(s(y) (log s(y) - log q(y)) / temperature) of the taken token y is over a half where the
    student likes it more than the teacher. arXiv 2607.10805 (ours: y is the taken token, and the
    bound on the entropy is of the last steps instead of a quantile of each)."""

    view: str
    anchor: str
    above: Annotated[Schedule, Between(0)]
    """Nats."""
    temperature: Annotated[float, Field(gt=0)] = 0.1

    @property
    def read(self) -> tuple[str, ...]:
        return (self.anchor, self.view)

    def __call__(
        self, student: Tensor, teachers: Mapping[str, Tensor], target_ids: Tensor
    ) -> tuple[Tensor, Observed]:
        said, y = teachers[self.view], target_ids.unsqueeze(-1)
        own = student.gather(-1, y)
        preferred = own.exp() * (own - said.gather(-1, y))
        gate = torch.sigmoid(preferred / self.temperature)
        inside = entropy(student) > self.above.now
        found = mixture(said, teachers[self.anchor], gate * inside)
        return found, {"sheltered": inside.squeeze(-1).to(own.dtype)}


@part
class Yielding(Target):
    """`q^(1 - a) anchor^a`, where a grows with how far the two lie apart: a = 2 most (sigmoid(
    steepness d) - 1/2) of their Jensen-Shannon divergence d. arXiv 2607.02502.

    Where the anchor is the student itself, reverse KL has exactly (1 - a) of its gradient to q.
    """

    view: str
    anchor: str
    steepness: Annotated[float, Field(ge=0)] = 50.0
    """Per nat."""
    most: Annotated[float, Field(ge=0, lt=1)] = 0.15

    @property
    def read(self) -> tuple[str, ...]:
        return (self.anchor, self.view)

    def __call__(
        self, student: Tensor, teachers: Mapping[str, Tensor], target_ids: Tensor
    ) -> tuple[Tensor, Observed]:
        said, anchor = teachers[self.view], teachers[self.anchor]
        apart = JSD()(anchor, said).unsqueeze(-1)
        share = 2 * self.most * (torch.sigmoid(self.steepness * apart) - 0.5)
        # 0 times what the anchor excludes is NaN.
        yielded = (share * anchor).masked_fill(share == 0, 0.0)
        return (1 - share) * said + yielded, {"yielded": share.squeeze(-1)}


@part
class EntropyLifted(Target):
    """`q^(1 / T)` with a temperature T a row, such that its entropy is H + lift sigmoid(steepness
    (H - pivot)), as far as T's bounds allow: flatter where it is unsure already. H is of the `top`
    entries. arXiv 2602.02244."""

    view: str
    lowest: Annotated[float, Field(gt=0)] = 1.1
    highest: Annotated[float, Field(gt=0)] = 1.5
    lift: float = 0.5
    """Nats."""
    steepness: float = 2.0
    pivot: float = 1.2
    """Nats."""
    top: Annotated[int, Field(gt=0)] = 512
    certain: Annotated[float, Field(ge=0)] = 0.03
    """Nats of the whole row's entropy up to which T stays the lowest."""

    @property
    def read(self) -> tuple[str, ...]:
        return (self.view,)

    def __call__(
        self, student: Tensor, teachers: Mapping[str, Tensor], target_ids: Tensor
    ) -> tuple[Tensor, Observed]:
        said = teachers[self.view]
        head = said.topk(min(self.top, said.shape[-1]), dim=-1).values
        now = entropy(head.log_softmax(-1))
        wanted = now + self.lift * torch.sigmoid(self.steepness * (now - self.pivot))
        low, high = (torch.full_like(now, bound) for bound in (self.lowest, self.highest))
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            short = entropy((head / middle).log_softmax(-1)) < wanted
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        temperature = high.masked_fill(entropy(said) <= self.certain, self.lowest)
        return said / temperature, {"temperature": temperature.squeeze(-1)}


@part
class Shifted(Target):
    """`anchor exp(bound tanh(d / bound) / beta)` with d = log q - log r less its mean over the
    vocabulary: the anchor moved by what one view says and another does not. arXiv 2607.02234.

    With r of a view that sees the reference without the question, d is what is about the question.
    """

    view: str
    less: str
    anchor: str
    bound: Annotated[float, Field(gt=0)] = 10.0
    """Nats."""
    beta: Annotated[float, Field(gt=0)] = 1.0

    @property
    def read(self) -> tuple[str, ...]:
        return (self.anchor, self.view, self.less)

    def __call__(
        self, student: Tensor, teachers: Mapping[str, Tensor], target_ids: Tensor
    ) -> tuple[Tensor, Observed]:
        anchor, said, less = (teachers[view] for view in self.read)
        excluded = anchor.isneginf() | said.isneginf() | less.isneginf()
        gained = (said - less).masked_fill(excluded, 0.0)
        counted = (~excluded).sum(-1, keepdim=True).clamp(min=1)
        centred = gained - gained.sum(-1, keepdim=True) / counted
        moved = anchor + self.bound * torch.tanh(centred / self.bound) / self.beta
        return moved.masked_fill(excluded, -torch.inf), {}


@part
class Contrasted(Target):
    """`q^(1 + strength) / max(r, e^floor)^strength`: one view, away from what another one, whose
    reference is wrong, would say too. arXiv 2606.11709, its authors' code."""

    view: str
    against: str
    strength: Annotated[float, Field(ge=0)] = 0.5
    floor: float = -30.0
    """Nats."""

    @property
    def read(self) -> tuple[str, ...]:
        return (self.against, self.view)

    def __call__(
        self, student: Tensor, teachers: Mapping[str, Tensor], target_ids: Tensor
    ) -> tuple[Tensor, Observed]:
        wrong = teachers[self.against].clamp(min=self.floor)
        return (1 + self.strength) * teachers[self.view] - self.strength * wrong, {}


def read_by(target: str | Target) -> tuple[str, ...]:
    """The teacher views that a view's name or a target stands for."""
    return (target,) if isinstance(target, str) else target.read


def side_of(
    target: str | Target,
    student: Logits,
    teachers: Mapping[str, Logits],
    target_ids: Tensor,
    temperature: float,
) -> tuple[Logits, Observed]:
    """What a loss at `temperature` reads, and metrics."""
    if isinstance(target, str):
        return teachers[target], {}
    return target.logits(student, teachers, target_ids, temperature)


def entropy(log_probs: Tensor) -> Tensor:
    """`[n, 1]` nats of rows `[n, V]`."""
    surprise = (log_probs.exp() * log_probs).masked_fill(log_probs.isneginf(), 0.0)
    return -surprise.sum(-1, keepdim=True)


def mixture(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """log((1 - share) a + share b), `[n, V]` from log-probs `[n, V]` and shares `[n, 1]`."""
    return torch.logaddexp(first + (-share).log1p(), second + share.log())


def certain(ids: Tensor, like: Tensor) -> Tensor:
    """Log-probs `[n, V]` of rows that say `ids` `[n]` and nothing else."""
    return torch.full_like(like, -torch.inf).scatter_(-1, ids.unsqueeze(-1), 0.0)


def arithmetic_mean(sides: Sequence[Tensor]) -> Tensor:
    """Log of the mean of probabilities, `[n, V]` from log-probs."""
    return torch.stack(list(sides)).logsumexp(0) - log(len(sides))


def geometric_mean(sides: Sequence[Tensor]) -> Tensor:
    """Mean of log-probs `[n, V]`; it does not sum to one."""
    return torch.stack(list(sides)).mean(0)
