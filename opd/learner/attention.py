"""Attention that keeps the segments of a packed row apart, in three backends.

Legend: `L` positions of a row, `l` of one segment, `H` query heads, `K` key heads, `E` head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch
from packaging.version import Version
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from opd import product
from opd.errors import RecipeError

Backend = Literal["sdpa", "varlen", "flash_attention_2"]

# transformers asks a model whether it can do SDPA when a registered name holds the word.
IMPLEMENTATIONS: Mapping[Backend, str] = {
    "sdpa": "segmented_sdpa",
    "varlen": "segmented_varlen_or_sdpa",
    "flash_attention_2": "flash_attention_2",
}
"""A backend to its name among transformers' attention implementations."""
SEPARABLE = {"full_attention", "sliding_attention"}
"""Kinds of layers that carry nothing from one segment to the next but what attention lets pass."""
FLASH_WITH_SOFTCAP = Version("2.6")

plain_sdpa = AttentionInterface()["sdpa"]
plain_mask = AttentionMaskInterface()["sdpa"]


@dataclass(frozen=True)
class Segments:
    """Where the segments of a packed row lie; handed to every layer, read by its attention."""

    lengths: tuple[int, ...]
    """Tokens, on the host: no layer waits for the device to learn them."""
    boundaries: Tensor
    """`[segments + 1]` int32 cumulative lengths, on the model's device."""


def refuse_unavailable(backend: Backend, device: torch.device, dtype: torch.dtype) -> None:
    """Raise RecipeError when this machine or precision cannot run `backend`."""
    if backend == "sdpa":
        return
    if backend == "flash_attention_2" and flash_version() is None:
        raise RecipeError(
            "model.attention: flash_attention_2 needs the package flash-attn, which is not "
            "installed; pip install 'opd[flash]', or set model.attention=varlen or sdpa"
        )
    if device.type != "cuda":
        raise RecipeError(
            f"model.attention: {backend} needs a CUDA device and this run is on {device.type}; "
            "set model.attention=sdpa"
        )
    if dtype == torch.float32:
        raise RecipeError(
            f"model.attention: {backend} computes in half precision only; set model.dtype=bfloat16 "
            "or model.attention=sdpa"
        )


def refuse_unfaithful(backend: Backend, model: PreTrainedModel) -> None:
    """Raise RecipeError when `backend` would leave out something that `model` was trained with."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is None:
        return
    if backend == "varlen":
        raise RecipeError(
            "model.attention: varlen cannot cap attention logits and this model does "
            "(attn_logit_softcapping); set model.attention=sdpa or flash_attention_2"
        )
    found = flash_version()
    if backend == "flash_attention_2" and found is not None and found < FLASH_WITH_SOFTCAP:
        raise RecipeError(
            f"model.attention: flash-attn {found} cannot cap attention logits and this model does "
            f"(attn_logit_softcapping); install flash-attn>={FLASH_WITH_SOFTCAP} or set "
            "model.attention=sdpa"
        )


def flash_version() -> Version | None:
    """The installed flash-attn, None where there is none."""
    try:
        return Version(version("flash-attn"))
    except PackageNotFoundError:
        return None


def packed_inputs(model: PreTrainedModel, boundaries: Tensor) -> dict[str, object]:
    """What to pass to the backbone of `model` so that the segments of its one row stay apart.

    `boundaries` is `[segments + 1]`. Raises RecipeError for models whose layers mix positions by
    other means than attention, or do not hand on what attention is told.
    """
    refuse_inseparable(model)
    implementation = model.config._attn_implementation
    assert implementation in IMPLEMENTATIONS.values(), f"{implementation} knows no segments"
    lengths = tuple(boundaries.diff().tolist())
    cumulative = boundaries.int()
    if implementation == IMPLEMENTATIONS["flash_attention_2"]:
        longest = max(lengths)
        return {
            "cu_seq_lens_q": cumulative,
            "cu_seq_lens_k": cumulative,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    # A mask of four dimensions is handed on as it is, so that none is built; it fits no row, so
    # that a layer which loses the segments fails instead of letting them see each other.
    unusable = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=boundaries.device)
    return {"segments": Segments(lengths, cumulative), "attention_mask": unusable}


def refuse_inseparable(model: PreTrainedModel) -> None:
    """Raise RecipeError when packing would let one segment of `model`'s row touch the next."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if not model.is_backend_compatible() or model._is_stateful or not kinds <= SEPARABLE:
        name = type(model).__name__
        others = ", ".join(sorted(kinds - SEPARABLE)) or "layers that take no boundaries"
        raise RecipeError(
            f"packing: {name} has {others}, so that packed sequences would see each other; "
            "set packing=false"
        )


def segmented_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of `[1, H, L, E]` queries over each segment's own keys `[1, K, L, E]`.

    Returns `[1, L, H, E]`. Without segments it is transformers' own SDPA, but for a soft-cap of the
    attention logits, which that one leaves out.
    """
    if segments is None:
        if softcap is not None:
            return capped(query, key, value, attention_mask, scaling, softcap), None
        kwargs.update(sliding_window=sliding_window, scaling=scaling)
        return plain_sdpa(module, query, key, value, attention_mask, **kwargs)
    outputs: list[Tensor] = []
    for q, k, v in by_segment(segments, query, key, value):
        mask = band(q.shape[2], sliding_window, q.device)
        if softcap is not None:
            outputs.append(capped(q, k, v, mask, scaling, softcap))
        else:
            outputs.append(plain_sdpa(module, q, k, v, mask, scaling=scaling, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def by_segment(segments: Segments, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The `[1, heads, l, E]` pieces of `[1, heads, L, E]` rows, segment by segment."""
    yield from zip(*(row.split(segments.lengths, dim=2) for row in rows), strict=True)


def band(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """`[1, 1, l, l]` bool: the last `window` positions, one's own among them.

    None where that is all of the past, which needs no mask.
    """
    if window is None or length <= window:
        return None
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    return ((distance >= 0) & (distance < window))[None, None]


def capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float,
) -> Tensor:
    """Attention with logits `softcap * tanh(logits / softcap)`. arXiv 2408.00118.

    `query` is `[B, H, l, E]`, `mask` `[B, 1, l, l']` bool; without one it is causal, or open where
    a single query follows a cache. Returns `[B, l, H, E]`.
    """
    length = query.shape[2]
    if mask is None and length > 1:
        # A cache allocated ahead holds nothing yet past the queries.
        key, value = key[:, :, :length], value[:, :, :length]
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    grouped = query.unflatten(1, (key.shape[1], -1))  # [B, K, H / K, l, E]
    logits = (grouped @ key[:, :, None].transpose(-1, -2)).float()
    logits = logits * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    logits = softcap * (logits / softcap).tanh()
    if mask is not None:
        # A row of padding may attend nowhere; the lowest number keeps it from becoming NaN.
        lowest = torch.finfo(logits.dtype).min
        logits = logits.masked_fill(~(mask if mask.dim() == 2 else mask[:, :, None]), lowest)
    weights = logits.softmax(-1).to(value.dtype)
    return (weights @ value[:, :, None]).flatten(1, 2).transpose(1, 2)


def segmented_varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As `segmented_sdpa`, in one call of torch's own flash attention; SDPA without segments."""
    if segments is None:
        kwargs.update(sliding_window=sliding_window, scaling=scaling)
        return segmented_sdpa(module, query, key, value, attention_mask, **kwargs)
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {}
    if key.shape[1] != query.shape[1]:
        # torch 2.11 has no name yet for queries that share keys.
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:
            shared = query.shape[1] // key.shape[1]
            key, value = (row.repeat_interleave(shared, dim=1) for row in (key, value))
    half = product.autocast_dtype(query.device) or value.dtype
    longest = max(segments.lengths)
    rows, keys, values = (row[0].transpose(0, 1).to(half) for row in (query, key, value))
    output = varlen_attn(
        rows,
        keys,
        values,
        segments.boundaries,
        segments.boundaries,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        **options,
    )
    assert isinstance(output, Tensor), "the log-sum-exp was not asked for"
    return output[None], None


def register(implementation: str, attend: Callable[..., tuple[Tensor, None]]) -> None:
    """Make `attend` known to transformers, with the masks that SDPA gets."""
    # Segments differ from one row to the next: a compiled layer steps out here.
    AttentionInterface.register(implementation, torch.compiler.disable(attend))
    AttentionMaskInterface.register(implementation, plain_mask)


register(IMPLEMENTATIONS["sdpa"], segmented_sdpa)
register(IMPLEMENTATIONS["varlen"], segmented_varlen)
