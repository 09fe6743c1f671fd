"""Bounds on the pull of single tokens or vocabulary entries.

Legend: `n` rows or tokens, `K` support size. Clips act on the numerator only: a clipped token still
counts.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from opd.objective.divergence import Divergence
from opd.types import Observed

Clip = Literal["none", "token_scale", "token_cap", "entry_nonneg", "entry_raw"]
"""`token_scale` (ours, the one to prefer) shrinks a token's loss to the bound and keeps the
direction of its gradient; `token_cap` (arXiv 2605.06597) drops the gradient beyond the bound;
`entry_nonneg` (ours) caps vocabulary entries made non-negative first; `entry_raw` caps raw entries
(arXiv 2601.18734), for parity only: it pushes down what the teacher wants raised (2609.38995)."""


def clipped(
    divergence: Divergence, student: Tensor, target: Tensor, clip: Clip, clip_at: float
) -> tuple[Tensor, Observed]:
    """The clipped divergence `[n]` from log-probs `[n, K]`, and metrics `[n]` of a clip: the share
    `clipped` of a row's entries, or 0 or 1 of a whole row; where it acts on entries also the nats
    that it `cut` off, and how many of them off entries that the teacher wants raised."""
    if clip not in ("entry_raw", "entry_nonneg"):
        return clipped_rows(divergence(student, target), clip, clip_at)
    entries = divergence.entries if clip == "entry_raw" else divergence.nonnegative_entries
    found = entries(student, target)
    cut = (found.detach() - clip_at).clamp(min=0)
    raised = cut.masked_fill(target <= student, 0.0)
    return found.clamp(max=clip_at).sum(-1), {
        "clipped": (cut > 0).float().mean(-1),
        "cut": cut.sum(-1),
        "cut_of_raised": raised.sum(-1),
    }


def clipped_rows(distance: Tensor, clip: Clip, clip_at: float) -> tuple[Tensor, Observed]:
    """What `clipped` makes of divergences `[n]`, for the clips that act on whole rows."""
    size = distance.detach()
    over = size > clip_at
    if clip == "token_cap":
        return distance.clamp(max=clip_at), {"clipped": over.float()}
    if clip == "token_scale":
        shrunk = distance * torch.where(over, clip_at / size, 1.0)
        return shrunk, {"clipped": over.float()}
    return distance, {}


def surrogate(
    ratio: Tensor, advantage: Tensor, low: float, high: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(r A, clip(r, 1 - low, 1 + high) A) `[n]` from ratios r (with gradients) and advantages A
    `[n]`, and whether the clip holds it. arXiv 1707.06347."""
    free = ratio * advantage
    bounded = ratio.clamp(1 - low, 1 + high) * advantage
    return -torch.minimum(free, bounded), {"clipped": (bounded < free).detach().float()}
