"""Which vocabulary entries of two rows are compared.

Legend: `n` rows, `V` vocabulary, `K` support size; all tables hold log-probs in nats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from opd.config import part

LEAST_TAIL = 1e-7
"""Probability kept for the tail, so that its log stays finite in float32."""


class Support(ABC):
    """Narrows two tables to the same entries, each still normalised."""

    @abstractmethod
    def __call__(self, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The student's and the target's `[n, K]` from their `[n, V]`; rows sum to one."""


@part
class Full(Support):
    """The whole vocabulary."""

    def __call__(self, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return student, target


@part
class TopK(Support):
    """The most probable entries of one side, and what becomes of the rest. arXiv 2601.20802.

    With a tail the divergence never exceeds that of the full vocabulary. Renormalised rows hide
    every disagreement about the rest.
    """

    size: Annotated[int, Field(gt=0)]
    chosen_by: Literal["student", "teacher"] = "student"
    rest: Literal["tail", "renormalise"] = "tail"
    """`tail` lumps the rest into one more entry; `renormalise` forgets it."""

    def __call__(self, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.size >= student.shape[-1]:
            return student, target
        chooser = student if self.chosen_by == "student" else target
        chosen = chooser.detach().topk(self.size, dim=-1).indices
        close = with_tail if self.rest == "tail" else renormalised
        return close(student.gather(-1, chosen)), close(target.gather(-1, chosen))


def with_tail(log_probs: Tensor) -> Tensor:
    """`[n, K]` true log-probs and the log of what they leave, `[n, K + 1]`."""
    covered = log_probs.logsumexp(-1, keepdim=True).clamp(max=-LEAST_TAIL)
    return torch.cat([log_probs, torch.log(-torch.expm1(covered))], dim=-1)


def renormalised(log_probs: Tensor) -> Tensor:
    """`[n, K]` log-probs shifted so that each row sums to one."""
    return log_probs - log_probs.logsumexp(-1, keepdim=True)
