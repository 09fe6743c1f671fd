"""Bounds on the pull of single tokens or vocabulary entries.

Legend: `n` rows or tokens, `K` support size. Clips act on the numerator only: a clipped token still
counts.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from opd.objective.divergence import Divergence

Clip = Literal["none", "token_scale", "token_cap", "entry_nonneg", "entry_raw"]
"""`token_scale` (ours, the one to prefer) shrinks a token's loss to the bound and keeps the
direction of its gradient; `token_cap` (arXiv 2605.06597) drops the gradient beyond the bound;
`entry_nonneg` (ours) caps vocabulary entries made non-negative first; `entry_raw` caps raw entries
(arXiv 2601.18734), for parity only: it pushes down what the teacher wants raised (2609.38995)."""


def clipped(
    divergence: Divergence, student: Tensor, target: Tensor, clip: Clip, clip_at: float
) -> tuple[Tensor, Tensor]:
    """The clipped divergence `[n]` from log-probs `[n, K]`, and the detached share `[n]` of it that
    the clip touched: of a row's entries, or 0 or 1 where the clip acts on whole rows."""
    if clip == "entry_raw":
        return _capped_entries(divergence.entries(student, target), clip_at)
    if clip == "entry_nonneg":
        return _capped_entries(divergence.nonnegative_entries(student, target), clip_at)
    return clipped_rows(divergence(student, target), clip, clip_at)


def clipped_rows(distance: Tensor, clip: Clip, clip_at: float) -> tuple[Tensor, Tensor]:
    """What `clipped` makes of divergences `[n]`, for the clips that act on whole rows."""
    size = distance.detach()
    over = size > clip_at
    if clip == "token_cap":
        return distance.clamp(max=clip_at), over.float()
    if clip == "token_scale":
        return distance * torch.where(over, clip_at / size, 1.0), over.float()
    return distance, torch.zeros_like(size)


def surrogate(
    ratio: Tensor, advantage: Tensor, low: float, high: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(r A, clip(r, 1 - low, 1 + high) A) `[n]` from ratios r (with gradients) and advantages A
    `[n]`, and whether the clip holds it. arXiv 1707.06347."""
    free = ratio * advantage
    bounded = ratio.clamp(1 - low, 1 + high) * advantage
    return -torch.minimum(free, bounded), {"clipped": (bounded < free).detach().float()}


def _capped_entries(entries: Tensor, clip_at: float) -> tuple[Tensor, Tensor]:
    return entries.clamp(max=clip_at).sum(-1), (entries.detach() > clip_at).float().mean(-1)
