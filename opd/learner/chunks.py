"""One pass over the student's rows, a chunk at a time: values, and what their sum pulls at.

Legend: `N` rows, `c` rows of a chunk, `b` rows of a block, `K` chosen entries, `V` vocabulary,
`D` hidden width.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from opd import product
from opd.head import Head, at_least_single, chunk_size
from opd.learner import row_kernel, row_tables
from opd.learner.row_pairs import Compared, Comparer, RowPairs
from opd.learner.sides import Memory, ShiftedLogits, Side, StudentLogits, TeacherLogits, pulled
from opd.objective.logits import Logits
from opd.objective.loss import Comparison

BLOCK_ELEMENTS = 1 << 18
"""Scores whose losses a CPU computes at once: their tables stay in its cache."""


class RowFunction(ABC):
    """What a pass makes of its rows: one value each. Values of different rows must not depend on
    each other."""

    @property
    @abstractmethod
    def comparison(self) -> Comparison | None:
        """What the values are functions of, beside the taken tokens' log-probs, if that is all."""

    @abstractmethod
    def target_ids(self, rows: slice) -> Tensor:
        """The taken tokens `[b]`."""

    @abstractmethod
    def of_comparison(self, rows: slice, found: Compared) -> Tensor:
        """The values `[b]` of some rows, from what their comparison found; its divergences and
        log-probs carry the gradient."""

    @abstractmethod
    def __call__(
        self, rows: slice, student: StudentLogits, teachers: Mapping[str, Logits]
    ) -> Tensor:
        """The values `[b]` of some rows, from both sides' logits."""


@dataclass(frozen=True)
class Gradients:
    """What a sum of values pulls at, where it was asked for."""

    hidden: Tensor | None
    """`[N, D]`."""
    weight: Tensor | None
    """`[V, D]`."""
    bias: Tensor | None
    """`[V]`."""


@dataclass(frozen=True)
class Work:
    """Everything about a pass but the student's tensors."""

    head: Head
    teachers: Mapping[str, tuple[Tensor, Head]]
    """View to `[N, D']` hidden states and their head."""
    function: RowFunction
    chunk_tokens: int | None
    autocast: torch.dtype | None
    """What autocast computed in where the pass was begun: a backward may run outside of it."""

    def narrowed(self, head: Head, vocabulary: int) -> Head:
        """The first `vocabulary` entries of `head` in the dtype that is computed in: the rest is
        one model's padding."""
        weight = head.weight.detach()[:vocabulary]
        bias = None if head.bias is None else head.bias.detach()[:vocabulary]
        return Head(weight.to(self.autocast or weight.dtype), bias, head.softcap)

    def run(
        self, hidden: Tensor, pull: Tensor | None, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Gradients]:
        """The values `[N]`, and the gradients of their sum, each times its `pull` `[N]` if given,
        that are needed of (hidden, weight, bias)."""
        wide = wide_dtype(hidden)
        heads = [self.head, *(head for _, head in self.teachers.values())]
        vocabulary = min(head.weight.shape[0] for head in heads)
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = Chunks(self, hidden, pull, needs, self.narrowed(self.head, vocabulary), wide)
            most = self.chunk_tokens or chunk_size(vocabulary, hidden.device)
            for window in even(hidden.shape[0], most):
                chunks.take(window)
        return chunks.values, chunks.gradients()


def even(rows: int, most: int) -> list[slice]:
    """`rows` in windows of at most `most`, the largest first and none of them small: each costs a
    pass over the weight's gradient, however few its rows."""
    count = math.ceil(rows / most)
    ends = [-(-rows * number // count) for number in range(count + 1)] if count else []
    return [slice(start, end) for start, end in pairwise(ends)]


class Chunks:
    """The sums of a pass, filled a chunk at a time."""

    def __init__(
        self,
        work: Work,
        hidden: Tensor,
        pull: Tensor | None,
        needs: tuple[bool, bool, bool],
        head: Head,
        wide: torch.dtype,
    ) -> None:
        self.work = work
        self.hidden = hidden
        self.pull = pull
        self.head = head
        self.memory = Memory()
        self.teacher_memory = {view: Memory() for view in work.teachers}
        shape = work.head.weight.shape
        new = hidden.new_zeros
        self.values = new(hidden.shape[0], dtype=wide)
        self.rows = torch.empty_like(hidden) if needs[0] else None
        self.weight = new(shape, dtype=wide) if needs[1] else None
        self.bias = new(shape[0], dtype=wide) if needs[2] else None
        self.teacher_heads = {
            view: head
            if shares_head(work.head, theirs)
            else work.narrowed(theirs, head.weight.shape[0])
            for view, (_, theirs) in work.teachers.items()
        }
        heads = [head, *self.teacher_heads.values()]
        self.may_exclude = any(
            each.bias is not None and bool(each.bias.isneginf().any()) for each in heads
        )

    @property
    def pulls(self) -> bool:
        """Whether any gradient is asked for."""
        return any(part is not None for part in (self.rows, self.weight, self.bias))

    def take(self, window: slice) -> None:
        """Compute the values of the rows `window` and add their gradients."""
        head = self.head
        rows = self.hidden[window].to(head.weight.dtype)
        scores = Side(rows, head, self.memory, rounds=self.rounds()).table
        sides = {view: self.side(view, window) for view in self.work.teachers}
        comparison = self.work.function.comparison
        if comparison is None:
            self.differentiate(window, scores, sides)
        else:
            self.compare(window, scores, sides[comparison.view], comparison)

    def differentiate(self, window: slice, scores: Tensor, sides: Mapping[str, Side]) -> None:
        """The values of the rows `window` by a call of the function, and by autograd what they pull
        at: whole rows of `scores` `[c, V]`, or no more than the entries that are read."""
        picked: list[tuple[slice, Tensor, Tensor]] = []
        is_whole = False
        for block in blocks(len(scores), scores):
            here = slice(window.start + block.start, window.start + block.stop)
            student = StudentLogits(scores[block], self.head, pulls=self.pulls)
            with torch.set_grad_enabled(self.pulls):
                value = self.work.function(here, student, views(student, sides, block))
                total = self.keep(here, value)
            if not self.pulls:
                continue
            whole, chosen = student.gradients(total)
            if whole is not None:
                scores[block] = whole
                is_whole = True
            picked += [(block, ids, values) for ids, values in chosen]
        if is_whole:
            for block, ids, values in picked:
                scores[block].scatter_add_(-1, ids, values.to(scores.dtype))
            self.add_whole(window, scores)
        elif self.pulls:
            self.add_chosen(window, picked)

    def compare(self, window: slice, scores: Tensor, side: Side, comparison: Comparison) -> None:
        """The values of the rows `window` by a comparison with `side`; `scores` `[c, V]` become
        what they pull at."""
        rows = comparer(comparison, scores)
        for block in blocks(len(scores), scores):
            here = slice(window.start + block.start, window.start + block.stop)
            pairs = RowPairs(
                student=scores[block],
                teacher=side.table[block],
                is_difference=side.is_difference,
                target_ids=self.work.function.target_ids(here),
                divergence=comparison.divergence,
                temperature=comparison.temperature,
                softcap=self.head.softcap,
                may_exclude=self.may_exclude,
            )
            found = rows.measure(pairs)
            leaves = [part.requires_grad_(self.pulls) for part in (found.divergence, found.logprob)]
            with torch.set_grad_enabled(self.pulls):
                total = self.keep(here, self.work.function.of_comparison(here, found))
            if self.pulls:
                rows.pull_(pairs, found, *pulled(total, leaves))
        if self.pulls:
            self.add_whole(window, scores)

    def keep(self, rows: slice, values: Tensor) -> Tensor:
        """Write the values `[b]` of `rows`; their sum, each times its pull if there is one."""
        self.values[rows] = values.detach()
        return (values if self.pull is None else values * self.pull[rows]).sum()

    def rounds(self) -> bool:
        """Whether the student's scores may be rounded: both sides then carry the same error."""
        shared = all(head is self.head for head in self.teacher_heads.values())
        return shared and self.hidden.device.type == "cpu" and bool(self.teacher_heads)

    def side(self, view: str, window: slice) -> Side:
        """A teacher's rows of a chunk."""
        hidden, _ = self.work.teachers[view]
        head = self.teacher_heads[view]
        theirs = hidden[window]
        if head is not self.head:
            return Side(theirs.to(head.weight.dtype), head, self.teacher_memory[view])
        # Subtracted before any rounding: the difference of rounded rows is mostly rounding.
        difference = at_least_single(theirs) - at_least_single(self.hidden[window])
        return Side(
            difference.to(head.weight.dtype),
            head,
            self.teacher_memory[view],
            is_difference=True,
            rounds=True,
        )

    def add_whole(self, window: slice, pull: Tensor) -> None:
        """Add the gradients of a chunk from what pulls at its scores, `[c, V]`."""
        dtype = self.head.weight.dtype
        rows, pull = self.hidden[window].to(dtype), pull.to(dtype)
        vocabulary = pull.shape[1]
        if self.rows is not None:
            total = torch.zeros_like(rows, dtype=self.values.dtype)
            product.add_rows_gradient(total, pull, self.head.weight)
            self.rows[window] = total
        if self.weight is not None:
            product.add_weight_gradient(self.weight[:vocabulary], pull, rows)
        if self.bias is not None:
            self.bias[:vocabulary] += pull.sum(0, dtype=self.values.dtype)

    def add_chosen(self, window: slice, picked: Sequence[tuple[slice, Tensor, Tensor]]) -> None:
        """Add the gradients of a chunk from what pulls at single scores: for blocks of its rows,
        ids and values `[b, K]`."""
        if self.rows is not None:
            self.rows[window] = 0
        for block, ids, values in picked:
            here = slice(window.start + block.start, window.start + block.stop)
            if self.rows is not None:
                chosen = at_least_single(self.head.weight[ids])
                self.rows[here] += torch.einsum("bk,bkd->bd", values, chosen).to(self.rows.dtype)
            if self.weight is not None:
                outer = values.unsqueeze(-1) * at_least_single(self.hidden[here]).unsqueeze(1)
                self.weight.index_add_(0, ids.flatten(), outer.flatten(0, 1))
            if self.bias is not None:
                self.bias.index_add_(0, ids.flatten(), values.flatten())

    def gradients(self) -> Gradients:
        """The sums in the dtype of what they belong to."""
        bias = self.work.head.bias
        return Gradients(
            self.rows,
            None if self.weight is None else rounded(self.weight, self.work.head.weight.dtype),
            None if self.bias is None or bias is None else self.bias.to(bias.dtype),
        )


def rounded(total: Tensor, dtype: torch.dtype) -> Tensor:
    """`total` in `dtype`, written into the front of its own memory where it gets narrower."""
    if total.dtype == dtype:
        return total
    narrow = total.view(-1).view(dtype)[: total.numel()]
    # In ascending order what is written never reaches what is still to be read.
    step = 1 << 22
    wide = total.view(-1)
    for start in range(0, total.numel(), step):
        narrow[start : start + step] = wide[start : start + step].clone()
    return narrow.view(total.shape)


def shares_head(first: Head, second: Head) -> bool:
    """Whether two heads are one: the same memory, and so the same numbers, in both."""
    return (
        first.weight.data_ptr() == second.weight.data_ptr()
        and first.weight.shape == second.weight.shape
        and first.softcap == second.softcap
        and (first.bias is second.bias)
    )


def comparer(comparison: Comparison, scores: Tensor) -> Comparer[Any]:
    """What compares a chunk's rows: the kernel on a GPU, or where Triton is interpreted."""
    here = scores.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    if here and scores.dtype != torch.float64 and row_kernel.supported(comparison.divergence):
        return row_kernel.COMPARER
    return row_tables.on(scores.device)


def blocks(rows: int, scores: Tensor) -> list[slice]:
    """Rows whose losses are computed together: few on a CPU, for its cache; a chunk on a GPU."""
    size = rows if scores.device.type != "cpu" else max(1, BLOCK_ELEMENTS // scores.shape[1])
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def views(
    student: StudentLogits, sides: Mapping[str, Side], block: slice
) -> Mapping[str, TeacherLogits]:
    """What each teacher says of the rows `block`."""
    return {
        view: ShiftedLogits(student, side, block)
        if side.is_difference
        else TeacherLogits(side, block)
        for view, side in sides.items()
    }


def wide_dtype(hidden: Tensor) -> torch.dtype:
    """What losses of `hidden` are summed in."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32
