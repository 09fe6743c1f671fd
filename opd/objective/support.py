"""Which vocabulary entries of two rows are compared.

Legend: `n` rows, `V` vocabulary, `K` support size; all tables hold log-probs in nats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from opd.config import part
from opd.errors import RecipeError
from opd.objective.logits import LEAST_TAIL, Logits


class Support(ABC):
    """Narrows two sides to the same entries, each still normalised."""

    @abstractmethod
    def __call__(
        self, student: Logits, target: Logits, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probs `[n, K]` of the student and of the target at `temperature`; rows sum to one."""


@part
class Full(Support):
    """The whole vocabulary."""

    def __call__(
        self, student: Logits, target: Logits, temperature: float
    ) -> tuple[Tensor, Tensor]:
        return student.log_probs(temperature), target.log_probs(temperature)


@part
class TopK(Support):
    """The most probable entries of one side, and what becomes of the rest. arXiv 2601.20802.

    With a tail the divergence never exceeds that of the full vocabulary. Renormalised rows hide
    every disagreement about the rest; they read K scores a row, so that neither the teacher's other
    scores nor their gradients are ever computed.
    """

    size: Annotated[int, Field(gt=0)]
    chosen_by: Literal["student", "teacher"] = "student"
    rest: Literal["tail", "renormalise"] = "tail"
    """`tail` lumps the rest into one more entry; `renormalise` forgets it."""

    def __call__(
        self, student: Logits, target: Logits, temperature: float
    ) -> tuple[Tensor, Tensor]:
        if self.size >= student.vocabulary:
            return Full()(student, target, temperature)
        chosen = (student if self.chosen_by == "student" else target).top(self.size)
        close = with_tail if self.rest == "tail" else renormalised
        return close(student, chosen, temperature), close(target, chosen, temperature)


@part
class Merged(Support):
    """Token ids that mean the same are one event, before any other support. arXiv 2609.20511.

    Where student and teacher stop with different ids of one stop set, a divergence otherwise takes
    the student's stop away and does not give it the teacher's.
    """

    ids: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=2)]
    """Raises RecipeError for one that the vocabulary has not."""
    support: Support = field(default_factory=Full)

    def __call__(
        self, student: Logits, target: Logits, temperature: float
    ) -> tuple[Tensor, Tensor]:
        merged = self._merged(student, temperature), self._merged(target, temperature)
        return self.support(*merged, temperature)

    def _merged(self, side: Logits, temperature: float) -> Logits:
        """All of the ids' probability on the first of them."""
        log_probs = side.log_probs(temperature)
        if max(self.ids) >= log_probs.shape[-1]:
            raise RecipeError(
                f"terms: Merged.ids holds {max(self.ids)}, and the vocabulary has "
                f"{log_probs.shape[-1]} entries; give ids of this model's tokenizer"
            )
        ids = torch.tensor(self.ids, device=log_probs.device)
        together = log_probs[:, ids].logsumexp(-1, keepdim=True)
        rest = log_probs.index_fill(-1, ids[1:], -torch.inf)
        return Logits(temperature * rest.index_copy(-1, ids[:1], together))


def with_tail(side: Logits, chosen: Tensor, temperature: float) -> Tensor:
    """Log-probs `[n, K + 1]` of `chosen` `[n, K]` on one side, and the log of what they leave."""
    log_probs = side.log_probs(temperature).gather(-1, chosen)
    covered = log_probs.logsumexp(-1, keepdim=True).clamp(max=-LEAST_TAIL)
    return torch.cat([log_probs, torch.log(-torch.expm1(covered))], dim=-1)


def renormalised(side: Logits, chosen: Tensor, temperature: float) -> Tensor:
    """Log-probs `[n, K]` of one side as if nothing but `chosen` `[n, K]` could be drawn."""
    return torch.log_softmax(side.at(chosen) / temperature, dim=-1)
