"""Losses in which the tokens of an update depend on each other.

Legend: `n` counted tokens, `S` sequences; a sequence that has no counted token is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from opd.config import part
from opd.objective.correction import LARGEST_LOG_RATIO
from opd.objective.loss import Observed, SequenceLoss
from opd.types import Seen, Tokens


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

    def sequences(
        self, values: Tensor, tokens: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        log_ratio = sequence_means(values - tokens.sampled_logprob, tokens)
        ratio = log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
        free = ratio * tokens.advantage
        bounded = ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * tokens.advantage
        loss = -torch.minimum(free, bounded)
        clipped = (bounded < free).detach().float()
        return loss[tokens.sequence], {"clipped": clipped[tokens.sequence]}


def sequence_sums(values: Tensor, tokens: Tokens) -> Tensor:
    """`[S]` sums of `[n]`."""
    none = torch.zeros(tokens.sequences, dtype=values.dtype, device=values.device)
    return none.index_add(0, tokens.sequence, values)


def sequence_means(values: Tensor, tokens: Tokens) -> Tensor:
    """`[S]` means of `[n]`; 0 of an empty sequence."""
    lengths = sequence_sums(torch.ones_like(values), tokens)
    return sequence_sums(values, tokens) / lengths.clamp(min=1)
