"""Products with a language-model head, in the precision and in the pieces that each device wants.

Legend: `c` rows of a chunk, `V` vocabulary, `D` hidden width. Sums over chunks are kept in float32,
or in float64 where the rows are.
"""

from __future__ import annotations

from functools import cache

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


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies in `dtype`. Where it does not, torch's loops in half
    precision take many times what raising the factors to float32 takes."""
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype != torch.float16 or torch.ops.mkldnn._is_mkldnn_fp16_supported()


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
    is_single = rows.dtype in (torch.float32, torch.float64)
    off = None
    if rounds and up_to_shift and not is_single:
        off = -scores(rows, weight[::SAMPLE_STRIDE], None, rounds=True).amax(-1, keepdim=True)
    if not is_single and rows.device.type == "cpu" and not (rounds and multiplies(rows.dtype)):
        product = raised(rows, weight, off, scores_dtype(rows.dtype, rounds=rounds), into)
    elif is_single or (rounds and off is None):
        product = torch.mm(rows, weight.T, out=into)
    elif off is not None:
        # The product is added to the shift before either is rounded.
        product = torch.addmm(off.expand(-1, len(weight)), rows, weight.T, out=into)
    elif into is None:
        product = torch.mm(rows, weight.T, out_dtype=torch.float32)
    else:
        product = torch.mm(rows, weight.T, out_dtype=torch.float32, out=into)
    return product if bias is None else product.add_(bias)


def raised(
    rows: Tensor, weight: Tensor, off: Tensor | None, dtype: torch.dtype, into: Tensor | None
) -> Tensor:
    """`rows @ weight.T + off` in `dtype`, `[c, V]`, computed in float32 a tile at a time."""
    if into is None:
        into = rows.new_empty(len(rows), len(weight), dtype=dtype)
    high = rows.float()
    for start in range(0, len(weight), TILE):
        tile = slice(start, start + TILE)
        product = high @ weight[tile].float().T
        into[:, tile] = product if off is None else product.add_(off)
    return into


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
    elif total.device.type != "cpu":
        torch.addmm(total, first, second, torch.float32, out=total)
    elif multiplies(first.dtype):
        total.add_(first @ second)
    else:
        total.addmm_(first.to(total.dtype), second.to(total.dtype))
