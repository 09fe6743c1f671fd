"""Products with a language-model head, in the precision and in the pieces that each device wants.

Legend: `c` rows of a chunk, `V` vocabulary, `D` hidden width. Sums over chunks are kept in float32,
or in float64 where the rows are.
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 1 << 12
"""Vocabulary entries that a CPU multiplies at once: its library's scratch grows with them, and a
tile's product is added while it is still in the cache."""

SAMPLE_STRIDE = 64
"""Every so many vocabulary entries are looked at to learn how high a row's scores are."""


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast computes in on `device`; None outside of autocast."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def scores(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    rounds: bool = False,
    up_to_shift: bool = False,
    into: Tensor | None = None,
) -> Tensor:
    """`rows @ weight.T + bias`, `[c, V]` from `[c, D]` and `[V, D]` of one dtype.

    Half-precision factors give float32, since rounded scores lose what tells two close models
    apart; with `rounds` they give their own dtype, which a CPU multiplies faster. Then, with
    `up_to_shift`, a number is taken off each row such that its high scores lie near 0, where
    rounding is fine. `into` `[c, V]` of the result's dtype is written to where it is given: new
    memory costs a tenth of the product.
    """
    if rows.dtype in (torch.float32, torch.float64) or (rounds and not up_to_shift):
        product = torch.mm(rows, weight.T, out=into)
    elif rounds:
        off = -(rows @ weight[::SAMPLE_STRIDE].T).amax(-1, keepdim=True)
        # The product is added to the shift before either is rounded.
        product = torch.addmm(off.expand(-1, len(weight)), rows, weight.T, out=into)
    elif rows.device.type == "cpu":
        tiles = [rows.float() @ tile.float().T for tile in weight.split(TILE)]
        product = torch.cat(tiles, dim=-1, out=into)
    elif into is None:
        product = torch.mm(rows, weight.T, out_dtype=torch.float32)
    else:
        product = torch.mm(rows, weight.T, out_dtype=torch.float32, out=into)
    return product if bias is None else product.add_(bias)


def scores_dtype(dtype: torch.dtype, *, rounds: bool) -> torch.dtype:
    """What `scores` yields of factors in `dtype`."""
    return dtype if rounds or dtype == torch.float64 else torch.float32


def add_rows_gradient(total: Tensor, pull: Tensor, weight: Tensor) -> None:
    """Add `pull @ weight`, from `[c, V]` and `[V, D]`, to `total` `[c, D]`."""
    if total.device.type != "cpu":
        add_product(total, pull, weight)
        return
    for start in range(0, weight.shape[0], TILE):
        tile = slice(start, start + TILE)
        add_product(total, pull[:, tile], weight[tile])


def add_weight_gradient(total: Tensor, pull: Tensor, rows: Tensor) -> None:
    """Add `pull.T @ rows`, from `[c, V]` and `[c, D]`, to `total` `[V, D]`."""
    if total.device.type != "cpu":
        add_product(total, pull.T, rows)
        return
    for start in range(0, total.shape[0], TILE):
        tile = slice(start, start + TILE)
        add_product(total[tile], pull[:, tile].T, rows)


def add_product(total: Tensor, first: Tensor, second: Tensor) -> None:
    """Add `first @ second` to `total`, whose precision is at least theirs."""
    if total.dtype == first.dtype:
        total.addmm_(first, second)
    elif total.device.type == "cpu":
        total.add_(first @ second)
    else:
        torch.addmm(total, first, second, torch.float32, out=total)
