"""Rows of student and teacher side by side, and what comparing them yields, whoever does it. Ours.

Legend: `n` rows, `V` vocabulary, `z_s` and `z_t` raw logits of student and teacher, `p` and `q`
their probabilities at the temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from opd.objective.divergence import Divergence


@dataclass(frozen=True)
class RowPairs:
    """What is compared."""

    student: Tensor
    """`[n, V]` z_s, of any float type."""
    teacher: Tensor
    """`[n, V]` z_t, or z_t - z_s."""
    target_ids: Tensor
    """`[n]` int64, the taken tokens."""
    divergence: Divergence
    temperature: float
    is_difference: bool
    softcap: float | None = None
    """c bends every logit z to c tanh(z / c) first."""
    may_exclude: bool = True
    """Whether some logit may be -inf. An entry that is so on both sides counts 0; one that only q
    excludes makes ReverseKL infinite, one that only p excludes ForwardKL."""


class Compared(Protocol):
    """What was found of the rows, each `[n]` nats in float32, or float64 where the rows are."""

    @property
    def divergence(self) -> Tensor: ...

    @property
    def logprob(self) -> Tensor:
        """log p of the taken tokens."""
        ...

    @property
    def entropy(self) -> Tensor: ...

    @property
    def teacher_logprob(self) -> Tensor: ...

    @property
    def teacher_entropy(self) -> Tensor: ...


Found = TypeVar("Found", bound=Compared)


@dataclass(frozen=True)
class Comparer(Generic[Found]):
    """The two calls of a comparison."""

    measure: Callable[[RowPairs], Found]
    pull_: Callable[[RowPairs, Found, Tensor, Tensor], None]
    """Overwrites the student's rows, in their own type, with the gradient in z_s of
    sum(divergence_scale * D(p, q) + taken_scale * log p[target]), both scales `[n]`, from what
    `measure` found of the same pairs, which is spent. The teacher counts as detached, also as a
    difference. A row of scale 0 gets 0, whatever its divergence."""
