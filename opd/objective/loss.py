"""What is minimised at each action token.

Legend: `n` rows of a chunk, `N` action tokens of a batch, `V` vocabulary. Row losses see whole
next-token distributions a chunk at a time, token losses only the log-probs of the taken tokens,
hidden losses the last layer, and in sequence losses the tokens of a whole update may depend on each
other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from opd.config import part
from opd.head import taken
from opd.objective.clip import Clip, clipped, clipped_rows, surrogate
from opd.objective.correction import Correction, ratio
from opd.objective.divergence import Divergence, ForwardKL
from opd.objective.logits import Logits
from opd.objective.support import Full, Support
from opd.objective.target import Target, read_by, side_of
from opd.objective.token_credit import TokenCredit
from opd.types import Batch, Observed, Seen, Tokens


class Loss(ABC):
    """Something to minimise, per token."""

    choices: ClassVar[Mapping[str, str]] = {
        "Apportioned": "opd.objective.sequence_loss:Apportioned",
        "HiddenInformation": "opd.objective.hidden_loss:HiddenInformation",
        "HiddenSquares": "opd.objective.hidden_loss:HiddenSquares",
        "MatchedDistance": "opd.objective.span_loss:MatchedDistance",
        "MeanCorrected": "opd.objective.sequence_loss:MeanCorrected",
        "PassedBack": "opd.objective.sequence_loss:PassedBack",
        "Preference": "opd.objective.sequence_loss:Preference",
        "ReturnToGo": "opd.objective.sequence_loss:ReturnToGo",
        "Corrected": "opd.objective.sequence_loss:Corrected",
        "Redistributed": "opd.objective.sequence_loss:Redistributed",
        "SequencePolicyGradient": "opd.objective.sequence_loss:SequencePolicyGradient",
        "SortedDistance": "opd.objective.span_loss:SortedDistance",
        "SuccessClassifier": "opd.objective.sequence_loss:SuccessClassifier",
    }

    @property
    @abstractmethod
    def views(self) -> tuple[str, ...]:
        """The teacher views that it reads."""

    @property
    def needed(self) -> tuple[str, ...]:
        """Those of its views without which a token does not count."""
        return self.views

    @property
    def needs_sampler(self) -> bool:
        """Whether it compares with the policy that drew a token: of one that was written down it
        has no value."""
        return False

    @property
    def needs_earlier(self) -> bool:
        """Whether it compares with the policy as it stood before the step's first update."""
        return False


@dataclass(frozen=True)
class Comparison:
    """Whole rows of the student against whole rows of one view, in a loss that is a function of
    their divergence and of the taken tokens' log-probs: what a kernel can compute."""

    view: str
    divergence: Divergence
    temperature: float
    loss: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Observed]] = field(compare=False)
    """What `rows` yields, from the divergences `[n]` (nats, with gradients), the taken tokens'
    log-probs `[n]`, and those when they were sampled."""


class RowLoss(Loss):
    """A loss of whole next-token distributions."""

    @property
    def comparison(self) -> Comparison | None:
        """What the loss comes down to, if to a comparison."""
        return None

    @abstractmethod
    def rows(
        self,
        student: Logits,
        target_ids: Tensor,
        sampled_logprob: Tensor,
        teachers: Mapping[str, Logits],
    ) -> tuple[Tensor, Observed]:
        """Losses `[n]` and metrics from the student's logits `[n, V]`, the taken tokens `[n]`,
        their log-probs `[n]` when they were sampled, and each view's logits `[n, V]`. Gradients
        flow to the student only. Rows must not depend on each other: they come a few at a time."""


class TokenLoss(Loss):
    """A loss of the taken tokens' log-probs."""

    @abstractmethod
    def tokens(
        self, logprob: Tensor, batch: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        """Losses `[N]` and metrics from the student's log-probs `[N]` (nats, at the sampling
        temperature, with gradients). Tokens must not depend on each other: they come a few at a
        time, `batch` and `teachers` cut to the same ones."""


class HiddenLoss(Loss):
    """A loss of the last layer's hidden states."""

    @abstractmethod
    def states(
        self, hidden: Tensor, batch: Batch, teachers: Mapping[str, Tensor]
    ) -> tuple[Tensor, Observed]:
        """Losses `[n]` and metrics from the student's hidden states `[n, D]` (with gradients) at
        the counted tokens and each view's `[n, D]`. Tokens of one sequence may depend on each
        other; those of different ones must not: they may come in different micro-batches."""


class SequenceLoss(Loss):
    """A loss in which tokens depend on each other: through a sequence, a pair, a statistic.

    It is a function of one number a token, over all micro-batches and ranks of an update. The
    learner computes the numbers first without gradients, and then pulls at each with the derivative
    of the loss there: exact, however the update is cut. Ours.
    """

    @property
    def inner(self) -> RowLoss | TokenLoss | None:
        """What the number of a token is; None for the taken token's log-prob, nats at the sampling
        temperature."""
        return None

    def counts(self, tokens: Tokens, teachers: Mapping[str, Seen]) -> Tensor:
        """`[n]` bool, which of the tokens that the weights count the loss can say something of."""
        return torch.ones_like(tokens.target_ids, dtype=torch.bool)

    @abstractmethod
    def sequences(
        self, values: Tensor, tokens: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        """Losses `[n]` and metrics from the numbers `[n]` (with gradients) of the counted tokens.
        Beside its views, `teachers` holds the `student` as it stands, detached.

        Sequences come in the order of the rollouts, whole but for tokens that do not count; a loss
        of a whole sequence stands at each of its tokens, to be averaged by sequence."""


@part
class Distill(RowLoss):
    """Divergence from what the teacher says at each of the student's own prefixes.

    Gradients flow through the student's probabilities, not through the choice of prefixes. arXiv
    2601.18734, 2601.19897 and 2601.20802 differ in the parts that they put in.
    """

    target: str | Target
    """A view, or what several sides add up to."""
    divergence: Divergence
    support: Support = field(default_factory=Full)
    clip: Clip = "none"
    clip_at: Annotated[float, Field(gt=0)] = 0.05
    """Nats."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides both sides' logits; with a correction it must be the sampling temperature."""
    correction: Correction | None = None

    @property
    def views(self) -> tuple[str, ...]:
        return read_by(self.target)

    def rows(
        self,
        student: Logits,
        target_ids: Tensor,
        sampled_logprob: Tensor,
        teachers: Mapping[str, Logits],
    ) -> tuple[Tensor, Observed]:
        target, observed = side_of(self.target, student, teachers, target_ids, self.temperature)
        compared = self.support(student, target, self.temperature)
        loss, bounds = clipped(self.divergence, *compared, self.clip, self.clip_at)
        if self.correction is not None:
            logprob = taken(student.measured(self.temperature), target_ids)
            loss = loss * self.correction(logprob, sampled_logprob)
        return loss, {**observed, **bounds}

    @property
    def comparison(self) -> Comparison | None:
        if not isinstance(self.target, str) or not isinstance(self.support, Full):
            return None
        if self.clip in ("entry_nonneg", "entry_raw"):
            return None
        return Comparison(self.target, self.divergence, self.temperature, self._of_distance)

    def _of_distance(
        self, distance: Tensor, logprob: Tensor, sampled_logprob: Tensor
    ) -> tuple[Tensor, Observed]:
        loss, observed = clipped_rows(distance, self.clip, self.clip_at)
        if self.correction is not None:
            loss = loss * self.correction(logprob, sampled_logprob)
        return loss, observed


@part
class WhereApart(RowLoss):
    """k / (k + half) of a loss, k = KL(q || r) of two views at temperature 1: where both would say
    the same, little. arXiv 2606.11709; that it enters no denominator is ours."""

    loss: RowLoss
    view: str
    against: str
    half: Annotated[float, Field(gt=0)] = 1.0
    """Nats at which half of the loss is left."""

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.loss.views, self.view, self.against)))

    def rows(
        self,
        student: Logits,
        target_ids: Tensor,
        sampled_logprob: Tensor,
        teachers: Mapping[str, Logits],
    ) -> tuple[Tensor, Observed]:
        loss, observed = self.loss.rows(student, target_ids, sampled_logprob, teachers)
        said, other = (teachers[view].measured(1.0) for view in (self.view, self.against))
        # Rounding may take a distance of 0 below it; one that is infinite leaves all.
        left = 1 / (1 + self.half / ForwardKL()(other, said).clamp(min=0))
        return loss * left, {**observed, "left": left}


@part
class Likelihood(RowLoss):
    """-log s of the given token at temperature 1: plain imitation."""

    @property
    def views(self) -> tuple[str, ...]:
        return ()

    def rows(
        self,
        student: Logits,
        target_ids: Tensor,
        sampled_logprob: Tensor,
        teachers: Mapping[str, Logits],
    ) -> tuple[Tensor, Observed]:
        return -taken(student.log_probs(1.0), target_ids), {}


@part
class SquaredLogRatio(RowLoss):
    """(log s - log q)^2 / 2 of the given token at temperature 1, q detached. arXiv 2602.02244."""

    target: str | Target
    """A view, or what several sides add up to."""

    @property
    def views(self) -> tuple[str, ...]:
        return read_by(self.target)

    def rows(
        self,
        student: Logits,
        target_ids: Tensor,
        sampled_logprob: Tensor,
        teachers: Mapping[str, Logits],
    ) -> tuple[Tensor, Observed]:
        side, observed = side_of(self.target, student, teachers, target_ids, 1.0)
        apart = taken(student.log_probs(1.0), target_ids) - taken(side.measured(1.0), target_ids)
        return apart.square() / 2, observed


@part
class SampledReverseKL(TokenLoss):
    """sg(log s - log q) log s on taken tokens: in expectation over s the gradient of reverse KL.

    Its value says nothing; its gradient does. arXiv 2601.20802, the clip from 2604.13010.
    """

    view: str
    clip_at: Annotated[float, Field(gt=0)] | None = None
    """Nats within which log s - log q is held; null lets it be."""
    correction: Correction | None = None

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    def tokens(
        self, logprob: Tensor, batch: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        excess = (logprob - teachers[self.view].logprob).detach()
        observed: Observed = {}
        if self.clip_at is not None:
            observed = {"clipped": (excess.abs() > self.clip_at).float()}
            excess = excess.clamp(-self.clip_at, self.clip_at)
        loss = excess * logprob
        if self.correction is not None:
            loss = loss * self.correction(logprob, batch.sampled_logprob)
        return loss, observed


@part
class SampledForwardKL(TokenLoss):
    """q / s - 1 - log(q / s) on taken tokens: at least 0, and 0 only where s = q.

    The gradient is 1 - q / s of the token's log-prob, which over s has forward KL's as its mean;
    the value has reverse KL's. What arXiv 2402.03300 holds to a reference with, and, less the 1,
    2606.04036.
    """

    view: str

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    def tokens(
        self, logprob: Tensor, batch: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        now, theirs = logprob.detach(), teachers[self.view].logprob
        gain = ratio(theirs, now) - 1
        # Written out: beyond the bound on the ratio its own derivative is 0.
        return gain + now - theirs - gain * (logprob - now), {}


@part
class Contrast(TokenLoss):
    """max(0, margin + |log s - log q+| - |log s - log q-|) on taken tokens: nearer to one view than
    to another that must not be followed. arXiv 2605.06597."""

    view: str
    negative: str
    margin: Annotated[float, Field(ge=0)] = 0.5
    """Nats."""

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view, self.negative)

    def tokens(
        self, logprob: Tensor, batch: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        near = (logprob - teachers[self.view].logprob).abs()
        far = (logprob - teachers[self.negative].logprob).abs()
        return (self.margin + near - far).clamp(min=0), {}


@part
class RatioReverseKL(TokenLoss):
    """r (q / s - 1 - log(q / s)) on taken tokens, r = trained / sampling probability: at least 0.

    r is not held constant: the gradient is r log(s / q) of the token's log-prob, which under the
    sampling policy has the reverse KL's as its mean; without r it would not. arXiv 2604.10674.
    """

    view: str

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    @property
    def needs_sampler(self) -> bool:
        return True

    def tokens(
        self, logprob: Tensor, batch: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        now = logprob.detach()
        excess = now - teachers[self.view].logprob
        drawn = ratio(now, batch.sampled_logprob)
        value = drawn * (ratio(-excess, torch.zeros_like(excess)) - 1 + excess)
        # Written out: where q is far above s, its two parts cancel to nothing but rounding.
        return value + drawn * excess * (logprob - now), {}


@part
class PolicyGradient(TokenLoss):
    """-min(r A, clip(r, 1 - low, 1 + high) A), r = trained / sampling probability.

    arXiv 2402.03300, upper bound of its own from 2503.14476. A correction takes the place of r and
    its clip: the gradient is its factor times that of -A log s. arXiv 2506.13585. Token credits
    reshape A for each token, one after the other.
    """

    clip_low: Annotated[float, Field(ge=0, le=1)] = 0.2
    clip_high: Annotated[float, Field(ge=0)] = 0.2
    correction: Correction | None = None
    token_credit: tuple[TokenCredit, ...] = ()

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(view for part in self.token_credit for view in part.views))

    @property
    def needed(self) -> tuple[str, ...]:
        return ()

    @property
    def needs_sampler(self) -> bool:
        return True

    def tokens(
        self, logprob: Tensor, batch: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        return self.following(self.advantages(logprob, batch, teachers), logprob, batch)

    def advantages(self, logprob: Tensor, batch: Tokens, teachers: Mapping[str, Seen]) -> Tensor:
        """A `[N]` of each token, detached, from log-probs `[N]`."""
        advantage = batch.advantage[batch.sequence]
        for reshaped in self.token_credit:
            advantage = reshaped(advantage, logprob.detach(), batch, teachers)
        return advantage

    def following(
        self, advantage: Tensor, logprob: Tensor, batch: Tokens
    ) -> tuple[Tensor, Observed]:
        """Losses `[N]` and metrics from advantages and log-probs `[N]`."""
        before = batch.sampled_logprob if self.correction is None else logprob.detach()
        change = ratio(logprob, before)
        loss, observed = surrogate(change, advantage, self.clip_low, self.clip_high)
        if self.correction is not None:
            loss = loss * self.correction(logprob, batch.sampled_logprob)
        return loss, observed


@part
class TokenCorrected(TokenLoss):
    """w l: a loss in which the policy before the step's first update stands for the one that
    sampled, and a factor w, the former over the sampling probability, for what really did. As TRL
    and verl have it; Corrected has a factor for a whole sequence.

    Where a step makes one update, that policy is the trained one. Tokens that were written down
    count as drawn by it.
    """

    loss: TokenLoss
    correction: Correction

    @property
    def views(self) -> tuple[str, ...]:
        return self.loss.views

    @property
    def needed(self) -> tuple[str, ...]:
        return self.loss.needed

    @property
    def needs_earlier(self) -> bool:
        return True

    def tokens(
        self, logprob: Tensor, batch: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        own, apart = before_updates(logprob, batch)
        factor = self.correction(apart, torch.zeros_like(apart))
        loss, observed = self.loss.tokens(logprob, own, teachers)
        return loss * factor, {**observed, "factor": factor}


def before_updates(logprob: Tensor, batch: Tokens) -> tuple[Tokens, Tensor]:
    """Tokens as if the policy before the step's first update had drawn them, and by how much its
    log-probs exceed the sampler's, `[n]` nats, 0 of tokens that were written down; from the trained
    policy's `[n]`, which it is where nothing else is known."""
    known = batch.earlier_logprob
    earlier = torch.where(known.isnan(), logprob.detach(), known)
    apart = (earlier - batch.sampled_logprob).nan_to_num(0.0)
    return replace(batch, sampled_logprob=earlier), apart
