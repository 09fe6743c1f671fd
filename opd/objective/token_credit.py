"""Reshapes the advantage of each token by what teachers think of it.

Legend: `n` tokens, `s` the student's probability of the taken token, `q` a view's. Weights cannot
do this: they are at least 0 and enter denominators. All in nats, and detached.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from opd.config import part
from opd.types import Batch, Seen


class TokenCredit(ABC):
    """An advantage per token. Where a view that it reads is absent, the advantage stays."""

    @property
    @abstractmethod
    def views(self) -> tuple[str, ...]:
        """The teacher views that it reads."""

    @abstractmethod
    def __call__(
        self, advantage: Tensor, logprob: Tensor, batch: Batch, teachers: Mapping[str, Seen]
    ) -> Tensor:
        """Advantages `[n]`, of any sign, from advantages `[n]` and the student's log-probs `[n]`
        of the taken tokens. Tokens must not depend on each other: they come a few at a time,
        `batch` and `teachers` cut to the same ones."""


@part
class Gap(TokenCredit):
    """kept * A + scale * (log q - log s): the teacher's dense reward beside the verifier's.

    In expectation over s the gap's part descends the reverse KL. Several add up: with scales l and
    1 - l of a teacher and of a base model, what the teacher gained over the base counts l-fold.
    """

    view: str
    scale: float = 1.0
    kept: float = 1.0
    student: Literal["trained", "sampled"] = "trained"
    """Whose log s: the policy's as it is, or as it was when it sampled."""

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    def __call__(
        self, advantage: Tensor, logprob: Tensor, batch: Batch, teachers: Mapping[str, Seen]
    ) -> Tensor:
        teacher = teachers[self.view]
        before = logprob if self.student == "trained" else batch.sampled_logprob
        shaped = self.kept * advantage + self.scale * (teacher.logprob - before)
        return torch.where(teacher.present, shaped, advantage)
