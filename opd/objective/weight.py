"""Which action tokens count, and how much.

Legend: `N` action tokens. Weights multiply each other and enter the denominator of a term.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import field
from math import ceil
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from opd.config import part
from opd.objective.sequence_loss import sequence_means
from opd.objective.token_credit import mean_probability
from opd.types import Batch, Scores, Seen, Tokens

ROUNDING = 1e-8
"""Variance of log-probs, nats squared, below which views differ by rounding alone; and what a count
may exceed a whole number by."""


class Weight(ABC):
    """A number per action token."""

    @property
    def views(self) -> tuple[str, ...]:
        """The teacher views that it reads."""
        return ()

    def fit(self, pass_rates: Sequence[float]) -> None:  # noqa: B027
        """Told before every step the pass rates of all problems that can be drawn, if known."""

    @abstractmethod
    def __call__(self, batch: Batch, scores: Mapping[str, Scores]) -> Tensor:
        """Weights `[N]`: at least 0, finite, detached."""


class UpdateWeight(Weight):
    """A weight that depends on more than its own micro-batch."""

    def __call__(self, batch: Batch, scores: Mapping[str, Scores]) -> Tensor:
        """1: a micro-batch alone says nothing."""
        return torch.ones_like(batch.sampled_logprob)

    @abstractmethod
    def over_update(self, tokens: Tokens, teachers: Mapping[str, Seen]) -> Tensor:
        """Weights `[n]` of the tokens that the other weights count, over all micro-batches and
        ranks of an update."""


@part
class PassRate(Weight):
    """p^a (1 - p)^b of the problem's pass rate p: most where it is half known. arXiv 2603.11178.

    0^0 is 1, so that an exponent of 0 ignores its side. What it is divided by shows only where a
    term's denominator does not divide by the weights again.
    """

    a: Annotated[float, Field(ge=0)] = 1.0
    b: Annotated[float, Field(ge=0)] = 1.0
    divide_by: Literal["nothing", "mean", "peak"] = "nothing"
    """`mean`: over all problems that can be drawn, so that the step is as long as unweighted;
    `peak`: its largest value a^a b^b / (a + b)^(a + b). Both ours."""
    mean: float = field(init=False, default=0.0, repr=False, compare=False)
    """Over all problems that can be drawn."""

    def fit(self, pass_rates: Sequence[float]) -> None:
        rates = torch.tensor(pass_rates, dtype=torch.float64)
        self.mean = self.kernel(rates).mean().item() if pass_rates else 0.0

    def __call__(self, batch: Batch, scores: Mapping[str, Scores]) -> Tensor:
        kernel = self.kernel(batch.pass_rate[batch.sequence])
        # Where the mean is 0 every weight is.
        return kernel / (
            {"nothing": 1.0, "mean": self.mean, "peak": self.peak}[self.divide_by] or 1.0
        )

    def kernel(self, rate: Tensor) -> Tensor:
        return rate**self.a * (1 - rate) ** self.b

    @property
    def peak(self) -> float:
        """The largest value of the kernel, at p = a / (a + b)."""
        a, b = self.a, self.b
        return (a / (a + b)) ** a * (b / (a + b)) ** b if a + b else 1.0


@part
class Influence(Weight):
    """max(0, 1 + scale * c) of a rollout's influence c: more where it helps other problems. A
    scale of 0 weighs all alike. arXiv 2501.02705; the map is ours."""

    scale: Annotated[float, Field(ge=0)] = 1.0

    def __call__(self, batch: Batch, scores: Mapping[str, Scores]) -> Tensor:
        return (1 + self.scale * batch.influence[batch.sequence]).clamp(min=0)


@part
class Only(Weight):
    """1 on the responses that succeeded, on those that did not, or on those whose advantage is
    above 0; 0 on the others."""

    when: Literal["success", "failure", "gain"]

    def __call__(self, batch: Batch, scores: Mapping[str, Scores]) -> Tensor:
        chosen = {
            "success": batch.success,
            "failure": ~batch.success,
            "gain": batch.advantage > 0,
        }
        return chosen[self.when][batch.sequence].float()


@part
class Differing(Weight):
    """1 on the tokens that a view finds likelier or less likely than others do on average, by more
    than `least` nats; 0 on the others and where a side is absent. arXiv 2606.11709."""

    view: str
    against: Annotated[tuple[str, ...], Field(min_length=1)]
    """Their mean probability, of those that are there."""
    least: Annotated[float, Field(ge=0)]

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view, *self.against)

    def __call__(self, batch: Batch, scores: Mapping[str, Scores]) -> Tensor:
        other, known = mean_probability([scores[view] for view in self.against])
        gap = (scores[self.view].logprob - other).abs()
        return ((gap > self.least) & known & scores[self.view].present).float()


@part
class Present(Weight):
    """1 where the teacher has the view, 0 where it has not."""

    view: str

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    def __call__(self, batch: Batch, scores: Mapping[str, Scores]) -> Tensor:
        return scores[self.view].present.float()


@part
class Rest(Weight):
    """1 on the tokens that some weights leave out together, 0 on those that they count."""

    of: Annotated[tuple[Weight, ...], Field(min_length=1)]
    """They multiply."""

    def __post_init__(self) -> None:
        if any(isinstance(weight, UpdateWeight) for weight in self.of):
            raise ValueError("what a weight over the whole update leaves is not known in time")

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(view for weight in self.of for view in weight.views)

    def __call__(self, batch: Batch, scores: Mapping[str, Scores]) -> Tensor:
        weights = [weight(batch, scores) for weight in self.of]
        return (torch.stack(weights).prod(0) == 0).float()


@part
class Origin(Weight):
    """1 on tokens that were sampled, or on those that were written down, and 0 on the others."""

    when: Literal["sampled", "written"]

    def __call__(self, batch: Batch, scores: Mapping[str, Scores]) -> Tensor:
        written = batch.sampled_logprob.isnan()
        return (written if self.when == "written" else ~written).float()


@part
class Leaning(Weight):
    """1 on sampled tokens that the teacher likes more than the sampler did, or on those it does
    not, and 0 on the others and where it is absent. Ours, for losses that differ by it."""

    view: str
    when: Literal["raised", "lowered"]
    beyond: float = 0.0
    """By how much more, nats; below 0 those that it likes a little less are raised too."""

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    def __call__(self, batch: Batch, scores: Mapping[str, Scores]) -> Tensor:
        teacher = scores[self.view]
        raised = teacher.logprob - batch.sampled_logprob > self.beyond
        chosen = raised if self.when == "raised" else ~raised
        return (chosen & teacher.present & ~batch.sampled_logprob.isnan()).float()


@part
class Confidence(Weight):
    """exp(-scale * H) of the teacher's entropy H, 0 where it is absent. arXiv 2604.02288."""

    view: str
    scale: Annotated[float, Field(ge=0)] = 1.0
    """Per nat."""

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    def __call__(self, batch: Batch, scores: Mapping[str, Scores]) -> Tensor:
        teacher = scores[self.view]
        return (-self.scale * teacher.entropy).exp() * teacher.present


@part
class FirstTokens(Weight):
    """1 on the response tokens from `skip` up to but without `keep`, 0 on the others.

    Skipping a few hides openings that betray the teacher's prompt. arXiv 2601.19897.
    """

    skip: Annotated[int, Field(ge=0)] = 0
    keep: Annotated[int, Field(gt=0)] | None = None
    """Counted from the start of the response; null keeps all."""

    def __call__(self, batch: Batch, scores: Mapping[str, Scores]) -> Tensor:
        inside = batch.position >= self.skip
        if self.keep is not None:
            inside = inside & (batch.position < self.keep)
        return inside.float()


@part
class Position(Weight):
    """least + (1 - least) sigmoid((f - middle) / width), f = (t - 1/2) / T of the response's own
    length T: later tokens, whose teacher is more reliable, count more. arXiv 2605.21606.

    That paper divides by the length, not by the weights: `denominator: count`.
    """

    least: Annotated[float, Field(ge=0, le=1)] = 0.25
    middle: float = 0.3
    """Share of the response."""
    width: Annotated[float, Field(gt=0)] = 0.1
    """Share of the response."""

    def __call__(self, batch: Batch, scores: Mapping[str, Scores]) -> Tensor:
        length = torch.bincount(batch.sequence, minlength=batch.sequences)[batch.sequence]
        passed = (batch.position + 0.5) / length
        return self.least + (1 - self.least) * torch.sigmoid((passed - self.middle) / self.width)


@part
class Agreement(UpdateWeight):
    """max(least, 1 / (1 + strength d)), d the variance of what several views think of the taken
    token over its quantile in the update: where teachers disagree none is followed far.

    d is held below `largest`; a token that fewer than two of the views see keeps 1. arXiv
    2605.06597.
    """

    among: tuple[str, ...]
    """Views."""
    strength: Annotated[float, Field(ge=0)] = 1.0
    quantile: Annotated[float, Field(gt=0, le=1)] = 0.95
    largest: Annotated[float, Field(gt=0)] = 10.0
    least: Annotated[float, Field(gt=0, le=1)] = 0.01

    @property
    def views(self) -> tuple[str, ...]:
        return self.among

    def over_update(self, tokens: Tokens, teachers: Mapping[str, Seen]) -> Tensor:
        seen = [teachers[view] for view in self.among]
        present = torch.stack([each.present for each in seen])
        squares, count = about_mean(torch.stack([each.logprob for each in seen]), present)
        variance = squares / (count - 1).clamp(min=1)
        judged = variance[count > 1]
        if not len(judged):
            return torch.ones_like(variance)
        usual = torch.quantile(judged, self.quantile).clamp(min=ROUNDING)
        distance = (variance / usual).clamp(max=self.largest)
        return (1 / (1 + self.strength * distance)).clamp(min=self.least)


@part
class SequenceAgreement(UpdateWeight):
    """max(least, exp(-strength d)), d the variance of several views' mean log-probs of a response:
    one weight for all of its tokens; 1 where fewer than two of the views are present. arXiv
    2605.06597.

    In a weighted mean over its own response it cancels, as it does in the authors' code. Average it
    by `sequence`.
    """

    among: tuple[str, ...]
    """Views."""
    strength: Annotated[float, Field(ge=0)] = 1.0
    """Per squared nat."""
    least: Annotated[float, Field(gt=0, le=1)] = 1e-6

    @property
    def views(self) -> tuple[str, ...]:
        return self.among

    def over_update(self, tokens: Tokens, teachers: Mapping[str, Seen]) -> Tensor:
        seen = [teachers[view] for view in self.among]
        thought = torch.stack([sequence_means(each.logprob, tokens) for each in seen])
        present = torch.stack([sequence_means(each.present.float(), tokens) for each in seen]) > 0
        squares, count = about_mean(thought, present)
        distance = squares / count.clamp(min=1)
        return (-self.strength * distance).exp().clamp(min=self.least)[tokens.sequence]


@part
class MostUnsure(UpdateWeight):
    """1 on the share of the update's tokens at which a view has the highest entropies, 0 on the
    others and where it is absent. A `Plain` view under `Live` weights is the student itself.
    arXiv 2603.11137; over the whole update is ours."""

    view: str
    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Of the tokens that other weights count, rounded up; ties with the last of them count too."""

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    def over_update(self, tokens: Tokens, teachers: Mapping[str, Seen]) -> Tensor:
        seen = teachers[self.view]
        known = seen.entropy[seen.present]
        if not len(known):
            return torch.zeros_like(seen.entropy)
        # 0.55 * 100 is a little more than 55.
        count = ceil(self.share * len(known) - ROUNDING)
        least = known.topk(count).values[-1]
        return ((seen.entropy >= least) & seen.present).to(seen.entropy.dtype)


def about_mean(values: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Squares about the mean of those that are present, summed, and how many they are, `[n]` each,
    from `[views, n]`."""
    count = present.sum(0)
    mean = (values * present).sum(0) / count.clamp(min=1)
    return ((values - mean).square() * present).sum(0), count
