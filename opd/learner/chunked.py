"""Losses from hidden states and heads, a chunk of rows at a time: no `[N, V]` tensor ever exists.

A chunk's scores become their own gradient in the forward, so that they are computed once: four
products with a trainable head (student, teacher, rows, weight), three with a frozen one. Where
student and teacher share the head, the teacher is projected as its difference from the student, so
that half precision keeps what tells the two apart. Ours.

Legend: `N` rows, `b` some of them, `V` vocabulary, `D` hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opd import product
from opd.head import Head
from opd.learner.chunks import Gradients, RowFunction, Work, wide_dtype
from opd.learner.row_pairs import Compared
from opd.learner.sides import StudentLogits
from opd.objective.clip import Clip
from opd.objective.divergence import Divergence
from opd.objective.logits import Logits
from opd.objective.loss import Comparison, Distill
from opd.objective.support import Full, Support


def refuse_second_order() -> None:
    """Raise RuntimeError where a graph of the backward is asked for: there would be none."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the loss has no second derivative: its gradient is computed without a graph; "
            "differentiate it without create_graph"
        )


class _Fused(torch.autograd.Function):
    """The sum of a pass's values; gradients are ready when the forward ends."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: Work
    ) -> Tensor:
        values, ctx.gradients = work.run(hidden, None, ctx.needs_input_grad[:3])
        return values.sum()

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        refuse_second_order()
        found: Gradients | None = ctx.gradients
        if found is None:
            raise RuntimeError(
                "the loss has been differentiated before: its gradients were computed in the "
                "forward and handed over; compute the loss again"
            )
        # Given away, not kept: the weight's gradient then becomes .grad without a copy.
        ctx.gradients = None
        parts = [part for part in (found.hidden, found.weight, found.bias) if part is not None]
        if pull.device.type != "cpu" or pull.item() != 1:
            for part in parts:
                part.mul_(pull)
        return found.hidden, found.weight, found.bias, None


class _Recomputed(torch.autograd.Function):
    """Each row's value; scores are computed again once it is known what pulls at each."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: Work
    ) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.work = work
        return work.run(hidden, None, (False, False, False))[0]

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        refuse_second_order()
        (hidden,) = ctx.saved_tensors
        _, found = ctx.work.run(hidden, pull, ctx.needs_input_grad[:3])
        return found.hidden, found.weight, found.bias, None


def fused(
    hidden: Tensor,
    head: Head,
    teachers: Mapping[str, tuple[Tensor, Head]],
    function: RowFunction,
    chunk_tokens: int | None = None,
) -> Tensor:
    """The sum of what `function` makes of the student's rows `[N, D]` and the teachers' rows.

    It carries the gradient, computed already, of the hidden states and of the head, as far as they
    ask for one; it can be differentiated once.
    """
    work = Work(head, teachers, function, chunk_tokens, product.autocast_dtype(hidden.device))
    return _Fused.apply(hidden, head.weight, head.bias, work)  # pyright: ignore


def linear_divergence(
    student_hidden: Tensor,
    student_head: Tensor | Head,
    teacher_hidden: Tensor,
    teacher_head: Tensor | Head,
    divergence: Divergence,
    *,
    weights: Tensor | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    support: Support | None = None,
    clip: Clip = "none",
    clip_at: float = 0.05,
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """The divergence of a teacher from a student, from `[N, D]` and `[N, D']` hidden states.

    Heads are `[V, D]` weights or `Head`s; where both are one, half precision keeps the difference
    of two models that nearly agree. Returns (the sum of weights times divergences, nats; the
    divergences `[N]`, 0 where the weight `[N]` is 0: nothing is computed there). The sum carries
    the gradient, computed in the forward, so it can be differentiated once; the divergences are
    detached. With `recompute` both carry it, for what is known only after the divergences, at the
    cost of computing the scores twice. Ours.
    """
    head, theirs = as_head(student_head), as_head(teacher_head)
    if weights is None:
        weights = student_hidden.new_ones(len(student_hidden), dtype=torch.float32)
    counted = weights.detach().nonzero().squeeze(-1)
    loss = Distill(
        target="teacher",
        divergence=divergence,
        support=support or Full(),
        clip=clip,
        clip_at=clip_at,
        temperature=temperature,
    )
    scales = None if recompute else weights.detach()[counted]
    found = student_hidden.new_zeros(len(counted), dtype=wide_dtype(student_hidden))
    function = Weighted(loss, scales, found)
    teachers = {"teacher": (chosen_rows(teacher_hidden.detach(), counted), theirs)}
    hidden = chosen_rows(student_hidden, counted)
    per_token = found.new_zeros(len(weights))
    if not recompute:
        total = fused(hidden, head, teachers, function, chunk_tokens)
        return total, per_token.index_copy(0, counted, found)
    work = Work(head, teachers, function, chunk_tokens, product.autocast_dtype(hidden.device))
    result: Tensor = _Recomputed.apply(hidden, head.weight, head.bias, work)  # pyright: ignore
    return (result * weights[counted]).sum(), per_token.index_copy(0, counted, result)


@dataclass(frozen=True)
class Weighted(RowFunction):
    """One distillation loss."""

    loss: Distill
    scales: Tensor | None
    """`[N]`."""
    found: Tensor
    """`[N]`, filled with the losses."""

    @property
    def comparison(self) -> Comparison | None:
        return self.loss.comparison

    def __call__(
        self, rows: slice, student: StudentLogits, teachers: Mapping[str, Logits]
    ) -> Tensor:
        nobody = self.target_ids(rows)
        return self.weighted(rows, self.loss.rows(student, nobody, nobody, teachers)[0])

    def target_ids(self, rows: slice) -> Tensor:
        return torch.zeros_like(self.found[rows], dtype=torch.long)

    def of_comparison(self, rows: slice, found: Compared) -> Tensor:
        assert self.comparison is not None, "a loss that comes down to no comparison"
        logprob = found.logprob
        return self.weighted(rows, self.comparison.loss(found.divergence, logprob, logprob)[0])

    def weighted(self, rows: slice, loss: Tensor) -> Tensor:
        """The losses `[b]` of some rows times their scales."""
        self.found[rows] = loss.detach()
        return loss if self.scales is None else loss * self.scales[rows]


def chosen_rows(rows: Tensor, index: Tensor) -> Tensor:
    """`rows[index]` of `[N, D]`, without a copy where that is all of them."""
    return rows if len(index) == len(rows) else rows[index]


def as_head(head: Tensor | Head) -> Head:
    """A bare weight as a head."""
    return head if isinstance(head, Head) else Head(head)
