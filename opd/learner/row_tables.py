"""Divergence, its gradient and the taken tokens' log-probs of a few rows, where there is no kernel.

What the first call finds is kept for the second, so that nothing is read or exponentiated twice.
Meant for as many rows as a CPU's cache holds. Ours.

Legend: `n` rows, `V` vocabulary, `z_s` and `z_t` raw logits of student and teacher, `p` and `q`
their probabilities at the temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from opd.head import at_least_single, over, taken
from opd.learner.row_pairs import Comparer, RowPairs
from opd.objective.divergence import Probs


@dataclass(frozen=True)
class Tables:
    """What was found of some rows."""

    divergence: Tensor
    """`[n]` nats."""
    logprob: Tensor
    """`[n]` nats, log p of the taken tokens."""
    target_ids: Tensor
    student: Probs
    target: Probs
    slopes: Tensor
    """`[n, V]`, the divergence's derivatives in log p."""
    cap_slopes: Tensor | None
    """`[n, V]`, the derivatives of the soft-cap."""

    @property
    def entropy(self) -> Tensor:
        """`[n]` nats."""
        return entropy(self.student)

    @property
    def teacher_logprob(self) -> Tensor:
        """`[n]` nats, log q of the taken tokens."""
        return taken(self.target.log, self.target_ids)

    @property
    def teacher_entropy(self) -> Tensor:
        """`[n]` nats."""
        return entropy(self.target)


def measure(pairs: RowPairs) -> Tables:
    """Compare the rows of both sides."""
    temperature, softcap, may_exclude = pairs.temperature, pairs.softcap, pairs.may_exclude
    raw = at_least_single(pairs.student)
    scores = capped(raw, softcap)
    student = normalised(scores, temperature, may_exclude=may_exclude)
    other = at_least_single(pairs.teacher)
    if pairs.is_difference:
        gap = other if softcap is None else capped(raw + other, softcap).sub_(scores)
        target = Probs(shifted(student, over(gap, temperature)), may_exclude=may_exclude)
    else:
        target = normalised(capped(other, softcap), temperature, may_exclude=may_exclude)
    entries, slopes = pairs.divergence.parts(student, target)
    return Tables(
        divergence=entries.sum(-1),
        logprob=taken(student.log, pairs.target_ids),
        target_ids=pairs.target_ids,
        student=student,
        target=target,
        slopes=slopes,
        cap_slopes=None if softcap is None else 1 - (scores / softcap).square_(),
    )


def pull_(pairs: RowPairs, found: Tables, divergence_scale: Tensor, taken_scale: Tensor) -> None:
    """Overwrite the student's rows with their gradient."""
    scale, taken_scale = divergence_scale / pairs.temperature, taken_scale / pairs.temperature
    counts = (scale != 0).unsqueeze(-1)
    slopes = found.slopes
    # Looking costs a CPU nothing, and would make a GPU wait.
    if slopes.device.type != "cpu" or not bool(counts.all()):
        slopes.masked_fill_(~counts, 0.0)
    # Through the softmax: g - p sum(g) for the slopes g, and e_y - p for the taken token y.
    pull_total = slopes.sum(-1) * scale + taken_scale
    slopes.mul_(scale.unsqueeze(-1))
    slopes.scatter_add_(-1, found.target_ids.unsqueeze(-1), taken_scale.unsqueeze(-1))
    slopes.addcmul_(found.student.probs, pull_total.unsqueeze(-1), value=-1)
    if found.cap_slopes is not None:
        slopes.mul_(found.cap_slopes)
    pairs.student.copy_(slopes)


PLAIN = Comparer(measure, pull_)


def on(device: torch.device) -> Comparer[Tables]:
    """Both calls as `device` runs them best: few rows at a time and plain on a CPU, compiled into a
    few passes on a GPU."""
    return PLAIN if device.type == "cpu" else compiled()


@cache
def compiled() -> Comparer[Tables]:
    """Both for any number of rows; compiled when first called."""
    return Comparer(torch.compile(measure, dynamic=True), torch.compile(pull_, dynamic=True))


def normalised(scores: Tensor, temperature: float, *, may_exclude: bool) -> Probs:
    """The softmax of `[n, V]` scores over `temperature`, and its log."""
    # As head.log_softmax, keeping what is exponentiated.
    log = over(scores - scores.amax(-1, keepdim=True), temperature)
    probs = log.exp()
    total = probs.sum(-1, keepdim=True)
    return Probs(log.sub_(total.log()), probs.div_(total), may_exclude=may_exclude)


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """`softcap * tanh(scores / softcap)`, without a copy where there is none."""
    return scores if softcap is None else (scores / softcap).tanh_().mul_(softcap)


def shifted(student: Probs, gap: Tensor) -> Tensor:
    """`log q` `[n, V]` of the logits that exceed the student's by `gap`.

    log q = log p + d - log <p, e^d>: what rounding does to p is common to both sides and cancels.
    """
    moved = gap + student.log
    gained = dot(student.probs, torch.expm1(gap))
    # Near -1 it has lost its digits, and the two lie so far apart that rounding matters less.
    near = (gained > -0.5) & gained.isfinite()
    shift = gained.log1p()
    # Looking costs a CPU nothing, and would make a GPU wait.
    if gap.device.type != "cpu" or not bool(near.all()):
        shift = torch.where(near, shift, moved.logsumexp(-1))
    return moved.sub_(shift.unsqueeze(-1))


def entropy(side: Probs) -> Tensor:
    """`[n]` nats."""
    if side.may_exclude:
        # exp(-inf) * -inf is NaN; a token that cannot be drawn adds nothing.
        return -side.probs.mul(side.log).masked_fill_(side.log.isneginf(), 0.0).sum(-1)
    return -dot(side.probs, side.log)


def dot(first: Tensor, second: Tensor) -> Tensor:
    """The products of rows `[n, V]` summed, `[n]`."""
    return torch.linalg.vecdot(first, second)
