"""Losses in which the tokens of an update depend on each other.

Legend: `n` counted tokens, `S` sequences; a sequence that has no counted token is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Annotated, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from opd.config import part
from opd.objective.clip import surrogate
from opd.objective.correction import Correction, ratio
from opd.objective.loss import (
    Observed,
    PolicyGradient,
    RowLoss,
    SequenceLoss,
    TokenLoss,
    before_updates,
)
from opd.types import Seen, Tokens

Changed = TypeVar("Changed", bound=RowLoss | TokenLoss)

TINY = 1e-8
"""Keeps a deviation of 0 from dividing."""


@part
class SequencePolicyGradient(SequenceLoss):
    """-min(r A, clip(r, 1 - low, 1 + high) A), r = exp(mean of log trained - log sampling
    probability over the sequence): one ratio for a whole response. arXiv 2507.18071.

    Average it by sequence.
    """

    clip_low: Annotated[float, Field(ge=0, le=1)] = 3e-4
    clip_high: Annotated[float, Field(ge=0)] = 4e-4

    @property
    def views(self) -> tuple[str, ...]:
        return ()

    @property
    def needs_sampler(self) -> bool:
        return True

    def sequences(
        self, values: Tensor, tokens: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        log_ratio = sequence_means(values - tokens.sampled_logprob, tokens)
        change = ratio(log_ratio, torch.zeros_like(log_ratio))
        loss, observed = surrogate(change, tokens.advantage, self.clip_low, self.clip_high)
        return loss[tokens.sequence], {k: v[tokens.sequence] for k, v in observed.items()}


@part
class SuccessClassifier(SequenceLoss):
    """-log sigmoid(z - d) of a success and -log sigmoid(d - z) of a failure, each class by its own
    mean, z = beta sum(log s - log q): the policy's ratio to a view tells the two apart.

    d, detached, lies midway between the classes' mean z (arXiv 2404.04656), over the update (ours;
    2605.15113 keeps a running estimate). A class that is missing adds nothing. Average it by
    sequence.
    """

    view: str
    """The prior: with `Live` weights and a `Plain` view the student itself (arXiv 2605.15113)."""
    beta: Annotated[float, Field(gt=0)] = 0.1

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    def sequences(
        self, values: Tensor, tokens: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        score = self.beta * sequence_sums(values - teachers[self.view].logprob, tokens)
        filled = sequence_sums(torch.ones_like(values), tokens) > 0
        both = filled & tokens.success, filled & ~tokens.success
        classes = [members for members in both if members.any()]
        means = [score.detach()[members].mean() for members in classes]
        middle = sum(means) / max(1, len(means))
        margin = torch.where(tokens.success, score - middle, middle - score)
        loss = -logsigmoid(margin)
        # The mean over all sequences is then the sum of the classes' means.
        share = torch.zeros_like(loss)
        for members in classes:
            share[members] = filled.sum() / members.sum()
        right = (margin.detach() > 0).float()
        return (share * loss)[tokens.sequence], {"told_apart": right[tokens.sequence]}


@part
class Preference(SequenceLoss):
    """-log sigmoid(beta (g - g')): of one problem's responses the first is preferred to each other,
    g = sum(log s - log q) of a response, q a view's probability. arXiv 2305.18290.

    A response without another of its problem does not count. Average it by sequence.
    """

    view: str
    """The reference policy."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    per_token: bool = False
    """Divide each g by its tokens. Ours."""

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    def counts(self, tokens: Tokens, teachers: Mapping[str, Seen]) -> Tensor:
        filled = sequence_sums(torch.ones_like(tokens.sampled_logprob), tokens) > 0
        same = (tokens.group[:, None] == tokens.group) & filled
        return (same.sum(-1) > 1)[tokens.sequence]

    def sequences(
        self, values: Tensor, tokens: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        total = sequence_means if self.per_token else sequence_sums
        gain = total(values - teachers[self.view].logprob, tokens)
        filled = sequence_sums(torch.ones_like(values), tokens) > 0
        same = (tokens.group[:, None] == tokens.group) & filled
        # argmax finds the first.
        chosen = same.int().argmax(-1)
        own = torch.arange(tokens.sequences, device=values.device)
        rejected = (filled & (chosen != own)).float()
        margin = self.beta * (gain[chosen] - gain)
        pair = -logsigmoid(margin) * rejected
        pairs = torch.zeros_like(pair).index_add(0, chosen, rejected)
        of_chosen = torch.zeros_like(pair).index_add(0, chosen, pair) / pairs.clamp(min=1)
        loss = torch.where(rejected > 0, pair, of_chosen)
        observed = {"chosen_gain": gain.detach()[chosen], "preferred": (margin > 0).float()}
        return loss[tokens.sequence], {key: v[tokens.sequence] for key, v in observed.items()}


@part
class ReturnToGo(SequenceLoss):
    """-min(r R, clip(r, 1 - low, 1 + high) R), r = trained / sampling probability, R_t the rewards
    log q - log s from token t on. arXiv 2306.08543: the gradient of a whole response's reverse KL,
    of which SampledReverseKL keeps each token's own part only.
    """

    view: str
    discount: Annotated[float, Field(ge=0, le=1)] = 1.0
    """0 keeps a token's own reward."""
    per_token: bool = True
    """Divide R_t by (the discounted number of) the tokens that are left: long responses gain
    nothing by their length."""
    whiten: bool = True
    """Less the mean and over the deviation of all counted tokens of the update."""
    reward_scale: Annotated[float, Field(gt=0)] = 0.5
    """Rewards are divided by it."""
    largest_reward: Annotated[float, Field(gt=0)] = 100.0
    clip_low: Annotated[float, Field(ge=0, le=1)] = 0.2
    clip_high: Annotated[float, Field(ge=0)] = 0.2

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    @property
    def needs_sampler(self) -> bool:
        return True

    def sequences(
        self, values: Tensor, tokens: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        gain = self.returns(values.detach(), tokens, teachers[self.view].logprob)
        change = ratio(values, tokens.sampled_logprob)
        loss, observed = surrogate(change, gain, self.clip_low, self.clip_high)
        return loss, {**observed, "return": gain}

    def returns(self, logprob: Tensor, tokens: Tokens, teacher_logprob: Tensor) -> Tensor:
        """R `[n]`, from the student's and the teacher's log-probs `[n]`."""
        most = self.largest_reward
        reward = ((teacher_logprob - logprob) / self.reward_scale).clamp(-most, most)
        rate = torch.full_like(reward, self.discount)
        gain = accumulated(reward, rate, tokens, backward=True)
        if self.per_token:
            gain = gain / accumulated(torch.ones_like(reward), rate, tokens, backward=True)
        if self.whiten and gain.numel() > 1:
            gain = (gain - gain.mean()) / (gain.std() + TINY)
        return gain


class OfAnother(SequenceLoss, Generic[Changed]):
    """What another loss becomes once its tokens depend on each other."""

    loss: Changed

    @property
    def inner(self) -> RowLoss | None:
        return self.loss if isinstance(self.loss, RowLoss) else None

    @property
    def views(self) -> tuple[str, ...]:
        return self.loss.views

    @property
    def needed(self) -> tuple[str, ...]:
        return self.loss.needed

    @property
    def needs_sampler(self) -> bool:
        return self.loss.needs_sampler


@part
class PassedBack(OfAnother[RowLoss]):
    """c_t d_t of a loss d, c_1 = 1 and c_t = 1 + l_(t-1) c_(t-1), l_t = sigmoid(-sharpness (d_t -
    mean d)), detached: what follows a stretch of low loss is supervised for it too.

    The same as adding to each d_t its share l_t of what the later tokens add up to. arXiv
    2608.06243; the mean over all counted tokens of the update is ours.
    """

    loss: RowLoss
    sharpness: Annotated[float, Field(ge=0)] = 5.0
    """Per nat; at 0 half of everything is passed back."""

    def sequences(
        self, values: Tensor, tokens: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        loss = values.detach()
        share = torch.sigmoid(-self.sharpness * (loss - loss.mean()))
        factor = accumulated(torch.ones_like(loss), share, tokens, backward=False)
        return factor * values, {"factor": factor}


@part
class Corrected(OfAnother[TokenLoss]):
    """w l: a loss of tokens in which the policy before the step's first update stands for the one
    that sampled, and a factor w for what really did: the former over the sampling probability of a
    whole sequence, its tokens' product or that product's geometric mean. As TRL and verl have it;
    TokenCorrected has a factor for each token.

    Where a step makes one update, that policy is the trained one. Tokens that were written down
    leave the factor as it is.
    """

    loss: TokenLoss
    correction: Correction
    of: Literal["product", "mean"] = "product"

    @property
    def needs_sampler(self) -> bool:
        # The policy before the first update stands for the sampler, of written tokens too.
        return False

    @property
    def needs_earlier(self) -> bool:
        return True

    def sequences(
        self, values: Tensor, tokens: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        own, apart = before_updates(values, tokens)
        joined = sequence_sums if self.of == "product" else sequence_means
        log_ratio = joined(apart, tokens)[tokens.sequence]
        factor = self.correction(log_ratio, torch.zeros_like(log_ratio))
        per_token, observed = self.loss.tokens(values, own, teachers)
        return per_token * factor, {**observed, "factor": factor}


@part
class MeanCorrected(OfAnother[RowLoss]):
    """A loss of rows times one factor a sequence: the mean of its counted tokens' corrections.
    arXiv 2601.19897.

    Average it by sequence.
    """

    loss: RowLoss
    correction: Correction

    def sequences(
        self, values: Tensor, tokens: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        each = self.correction(teachers["student"].logprob, tokens.sampled_logprob)
        factor = sequence_means(each, tokens)[tokens.sequence]
        return factor * values, {"factor": factor}


@part
class Redistributed(OfAnother[PolicyGradient]):
    """A policy gradient whose token credits only move credit within a response: what they add to
    each token's advantage is less its mean over the response's tokens. arXiv 2609.36742 (that the
    mean is the response's is ours)."""

    loss: PolicyGradient

    def sequences(
        self, values: Tensor, tokens: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        own = tokens.advantage[tokens.sequence]
        added = self.loss.advantages(values, tokens, teachers) - own
        moved = added - sequence_means(added, tokens)[tokens.sequence]
        loss, observed = self.loss.following(own + moved, values, tokens)
        return loss, {**observed, "moved": moved.abs()}


@part
class Apportioned(OfAnother[PolicyGradient]):
    """A policy gradient whose gains lie where a view likes the tokens more than the sampler did: an
    advantage above 0 is multiplied by c over its geometric mean over the response's tokens, c = q /
    sampling probability within [1 / bound, bound]. arXiv 2607.17247.

    Other advantages stay, and all of a response without the view.
    """

    loss: PolicyGradient
    view: str
    bound: Annotated[float, Field(ge=1)] = 3.0

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.loss.views, self.view)))

    def sequences(
        self, values: Tensor, tokens: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        seen, most = teachers[self.view], log(self.bound)
        liked = (seen.logprob - tokens.sampled_logprob).clamp(-most, most)
        liked = liked.masked_fill(~seen.present, 0.0)
        factor = (liked - sequence_means(liked, tokens)[tokens.sequence]).exp()
        own = self.loss.advantages(values, tokens, teachers)
        advantage = torch.where(own > 0, own * factor, own)
        loss, observed = self.loss.following(advantage, values, tokens)
        return loss, {**observed, "factor": factor}


def accumulated(added: Tensor, rate: Tensor, tokens: Tokens, *, backward: bool) -> Tensor:
    """`[n]` x_t = added_t + rate_(t-1) x_(t-1) along each sequence, x_1 = added_1, from `[n]` each;
    backward x_t = added_t + rate_t x_(t+1), x_T = added_T."""
    lengths = torch.bincount(tokens.sequence, minlength=tokens.sequences)
    start = lengths.cumsum(0) - lengths
    place = torch.arange(len(added), device=added.device) - start[tokens.sequence]
    if backward:
        place = lengths[tokens.sequence] - 1 - place
    longest = int(lengths.max()) if lengths.numel() else 0
    table = added.new_zeros(longest, tokens.sequences)
    rates = torch.zeros_like(table)
    table[place, tokens.sequence] = added
    # Backward the rate stands at the token itself, forward at the one before it.
    shifted = place if backward else place + 1
    inside = shifted < lengths[tokens.sequence]
    rates[shifted[inside], tokens.sequence[inside]] = rate[inside]
    for step in range(1, longest):
        table[step] += rates[step] * table[step - 1]
    return table[place, tokens.sequence]


def sequence_sums(values: Tensor, tokens: Tokens) -> Tensor:
    """`[S]` sums of `[n]`."""
    none = torch.zeros(tokens.sequences, dtype=values.dtype, device=values.device)
    return none.index_add(0, tokens.sequence, values)


def sequence_means(values: Tensor, tokens: Tokens) -> Tensor:
    """`[S]` means of `[n]`; 0 of an empty sequence."""
    lengths = sequence_sums(torch.ones_like(values), tokens)
    return sequence_sums(values, tokens) / lengths.clamp(min=1)
