"""Student and teacher within a chunk: scores projected at once, read a block of rows at a time.

Legend: `c` rows of a chunk, `b` rows of a block, `K` chosen entries, `V` vocabulary, `D` hidden
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from opd import product
from opd.head import Head, at_least_single, log_softmax, over
from opd.learner.row_tables import shifted
from opd.objective.divergence import Probs
from opd.objective.logits import Logits


@dataclass(frozen=True)
class Side:
    """The rows of a chunk and the head that they are multiplied with."""

    rows: Tensor
    """`[c, D]` hidden states, or the teacher's less the student's."""
    head: Head
    memory: Memory
    is_difference: bool = False
    rounds: bool = False
    """Whether scores may be of the rows' own precision."""

    @property
    def vocabulary(self) -> int:
        return self.head.weight.shape[0]

    @cached_property
    def table(self) -> Tensor:
        """`[c, V]` scores before any soft-cap, each row up to a number where they are rounded."""
        weight = self.head.weight
        bias = None if self.is_difference else self.head.bias
        dtype = product.scores_dtype(weight.dtype, rounds=self.rounds)
        into = self.memory.table(len(self.rows), len(weight), dtype, weight.device)
        shift = not self.is_difference and self.head.softcap is None
        return product.scores(
            self.rows, weight, bias, rounds=self.rounds, up_to_shift=shift, into=into
        )

    def at(self, block: slice, ids: Tensor) -> Tensor:
        """`[b, K]` scores of `ids` `[b, K]` alone."""
        chosen = at_least_single(self.head.weight[ids])
        scores = torch.einsum("bkd,bd->bk", chosen, at_least_single(self.rows[block]))
        if self.head.bias is None or self.is_difference:
            return scores
        return scores + self.head.bias[ids]


class Memory:
    """One side's scores, written over from chunk to chunk."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None

    def table(self, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """`[rows, width]` of anything."""
        if self.kept is None or len(self.kept) < rows:
            self.kept = torch.empty(rows, width, dtype=dtype, device=device)
        return self.kept[:rows]


class StudentLogits(Logits):
    """The student's rows of a block; what a loss reads of them collects its gradient."""

    def __init__(self, scores: Tensor, head: Head, *, pulls: bool) -> None:
        super().__init__(scores)
        self.head = head
        self.pulls = pulls
        self.whole: Tensor | None = None
        """What collects the gradient of whole rows, `[b, V]`, once they are read."""
        self.chosen: list[tuple[Tensor, Tensor]] = []
        """Ids and what collects the gradient of their scores, both `[b, K]`."""

    def raw(self) -> Tensor:
        """`[b, V]` before any soft-cap, without gradient."""
        return at_least_single(self._scores)

    def scores(self) -> Tensor:
        return self._capped

    @cached_property
    def _capped(self) -> Tensor:
        self.whole = self.raw().detach().requires_grad_(self.pulls)
        return self.head.capped(self.whole)

    @torch.no_grad()
    def measured(self, temperature: float) -> Tensor:
        known = self._log_probs.get(temperature)
        if known is not None:
            return known.detach()
        return log_softmax(self.head.capped(self.raw()), temperature)

    def top(self, size: int) -> Tensor:
        # A soft-cap keeps the order.
        return self._scores.topk(size, dim=-1).indices

    def at(self, ids: Tensor) -> Tensor:
        leaf = self.raw().gather(-1, ids).requires_grad_(self.pulls)
        self.chosen.append((ids, leaf))
        return self.head.capped(leaf)

    def gradients(self, total: Tensor) -> tuple[Tensor | None, Sequence[tuple[Tensor, Tensor]]]:
        """What `total` pulls at: `[b, V]` of whole rows, None where nothing has read them, and
        (ids, values) `[b, K]` of each choice of entries."""
        ids = [each for each, _ in self.chosen]
        leaves = [leaf for _, leaf in self.chosen]
        if self.whole is None:
            return None, list(zip(ids, pulled(total, leaves), strict=True))
        whole, *values = pulled(total, [self.whole, *leaves])
        return whole, list(zip(ids, values, strict=True))


def pulled(total: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients of `total` in `leaves`, zeros where it does not depend on them."""
    if not leaves or not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)


class TeacherLogits(Logits):
    """A teacher's rows of a block, projected when first read."""

    def __init__(self, side: Side, block: slice) -> None:
        super().__init__(side.rows)
        self.side = side
        self.block = block

    @property
    def vocabulary(self) -> int:
        return self.side.vocabulary

    def scores(self) -> Tensor:
        return self.side.head.capped(at_least_single(self.side.table[self.block]))

    def at(self, ids: Tensor) -> Tensor:
        return self.side.head.capped(self.side.at(self.block, ids))


class ShiftedLogits(TeacherLogits):
    """A teacher that shares the student's head: the student's scores and a difference."""

    def __init__(self, student: StudentLogits, side: Side, block: slice) -> None:
        super().__init__(side, block)
        self.student = student

    def shift(self) -> Tensor:
        """What the teacher's scores `[b, V]` exceed the student's by."""
        difference = at_least_single(self.side.table[self.block])
        head = self.side.head
        if head.softcap is None:
            return difference
        raw = self.student.raw()
        return head.capped(raw + difference) - head.capped(raw)

    def scores(self) -> Tensor:
        return self.side.head.capped(self.student.raw()) + self.shift()

    def at(self, ids: Tensor) -> Tensor:
        return self.side.head.capped(
            self.student.raw().gather(-1, ids) + self.side.at(self.block, ids)
        )

    def normalised(self, temperature: float) -> Tensor:
        student = Probs(self.student.measured(temperature))
        return shifted(student, over(self.shift(), temperature))
