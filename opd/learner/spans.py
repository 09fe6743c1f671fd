"""Losses of spans from the student's hidden states, a block of spans at a time.

Legend: `N` action tokens, `g` spans of a block, `t` their tokens, `V` the student's vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from opd.head import Head, at_least_single, chunk_size, log_softmax, taken
from opd.objective.span_loss import SpanLoss
from opd.types import Scores


def span_losses(
    loss: SpanLoss,
    hidden: Tensor,
    head: Head,
    target_ids: Tensor,
    scores: Scores,
    index: Tensor,
    temperature: float,
) -> Tensor:
    """`loss` of each span that ends at one of the tokens `index`, `[len(index)]` with gradients,
    from the hidden states `[N, D]` of all tokens.

    A block's scores are computed again in the backward: no `[N, V]` tensor is kept.
    """
    if not len(index):
        return hidden.new_zeros(0)
    blocks = index.split(chunk_size(head.weight.shape[0], hidden.device))
    found = [
        checkpoint(
            block_losses,
            *(loss, hidden, head, target_ids, scores, block, temperature),
            use_reentrant=False,
        )
        for block in blocks
    ]
    return torch.cat(found)  # pyright: ignore[reportArgumentType]


def block_losses(
    loss: SpanLoss,
    hidden: Tensor,
    head: Head,
    target_ids: Tensor,
    scores: Scores,
    last: Tensor,
    temperature: float,
) -> Tensor:
    """`[g]`, of the spans that end at the tokens `last` `[g]`."""
    spans = scores.spans
    assert spans is not None, "a span loss reads a teacher with a tokenizer of its own"
    lengths = spans.length[last]
    own = torch.arange(len(last), device=last.device).repeat_interleave(lengths)
    within = torch.arange(len(own), device=last.device) - (lengths.cumsum(0) - lengths)[own]
    tokens = last[own] - lengths[own] + 1 + within
    log_probs = log_softmax(logits(head, hidden[tokens]), temperature)  # [t, V]
    kept = tokens == last[own] if spans.row == "last" else within == 0
    given = taken(log_probs, target_ids[tokens]).masked_fill(kept, 0.0)
    others = given.new_zeros(len(last)).index_add(0, own, given)
    with torch.no_grad():
        teacher = log_softmax(scores.head.logits(scores.hidden[last]), scores.temperature)
        teacher = teacher + spans.others[last, None]
    return loss.spans(log_probs[kept] + others[:, None], teacher, spans.shared)


def logits(head: Head, rows: Tensor) -> Tensor:
    """`[t, V]` scores with gradients for rows and head, at least in single precision."""
    bias = None if head.bias is None else at_least_single(head.bias)
    with torch.autocast(rows.device.type, enabled=False):
        return head.capped(linear(at_least_single(rows), at_least_single(head.weight), bias))
