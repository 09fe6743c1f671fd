"""Student and teacher within a chunk: scores projected at once, read a block of rows at a time.

Legend: `c` rows of a chunk, `b` rows of a block, `K` chosen entries, `V` vocabulary, `D` hidden
width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    kept: list[Tensor] = field(default_factory=list)

    @property
    def vocabulary(self) -> int:
        return self.head.weight.shape[0]

    def scores(self, block: slice) -> Tensor:
        """`[b, V]` of the rows `block`, before any soft-cap, each up to a number where they are
        rounded; the chunk is projected at once."""
        if not self.kept:
            weight = self.head.weight
            bias = None if self.is_difference else self.head.bias
            dtype = product.scores_dtype(weight.dtype, rounds=self.rounds)
            into = self.memory.table(len(self.rows), len(weight), dtype, weight.device)
            shift = not self.is_difference and self.head.softcap is None
            found = product.scores(
                self.rows, weight, bias, rounds=self.rounds, up_to_shift=shift, into=into
            )
            self.kept.append(found)
        return self.kept[0][block]

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
        self.whole: list[tuple[Tensor, Tensor]] = []
        self.chosen: list[tuple[Tensor, Tensor]] = []

    def raw(self) -> Tensor:
        """`[b, V]` before any soft-cap, without gradient."""
        return at_least_single(self._scores)

    def scores(self) -> Tensor:
        if not self.whole:
            leaf = self.raw().detach().requires_grad_(self.pulls)
            self.whole.append((leaf, self.head.capped(leaf)))
        return self.whole[0][1]

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

    def leaves(self) -> list[Tensor]:
        """What was read."""
        return [leaf for leaf, _ in self.whole] + [leaf for _, leaf in self.chosen]


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
        return self.side.head.capped(at_least_single(self.side.scores(self.block)))

    def at(self, ids: Tensor) -> Tensor:
        return self.side.head.capped(self.side.at(self.block, ids))


class ShiftedLogits(TeacherLogits):
    """A teacher that shares the student's head: the student's scores and a difference."""

    def __init__(self, student: StudentLogits, side: Side, block: slice) -> None:
        super().__init__(side, block)
        self.student = student

    def shift(self) -> Tensor:
        """What the teacher's scores `[b, V]` exceed the student's by."""
        difference = at_least_single(self.side.scores(self.block))
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
