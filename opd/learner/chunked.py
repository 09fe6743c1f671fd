"""Per-token losses from hidden states, a chunk of tokens at a time: no `[N, V]` tensor ever exists.

Each chunk's logits are computed in the forward, dropped, and computed again in the backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from opd.objective.loss import RowLoss
from opd.types import Batch, Head, Scores

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once: 64 MiB in float32."""


@dataclass(frozen=True)
class Rows:
    """What one pass over the student's rows yields."""

    logprob: Tensor
    """`[N]` nats of the taken tokens at the sampling temperature, with gradient."""
    entropy: Tensor
    """`[N]` nats at the sampling temperature, detached."""
    losses: tuple[Tensor, ...]
    """`[N]` for each row loss, with gradient."""
    observed: tuple[Mapping[str, Tensor], ...]
    """What each row loss reports of itself, name to `[N]`, detached."""


def chunk_size(vocabulary: int) -> int:
    """How many rows fit into the memory that a chunk may take."""
    return max(1, CHUNK_ELEMENTS // vocabulary)


def taken_and_entropy(
    logits: Tensor, target_ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """(`[n]` log-prob of the taken tokens, `[n]` entropy) of `[n, V]` logits, in nats."""
    table = log_softmax(logits / temperature, dim=-1)
    logprob = table.gather(-1, target_ids[:, None]).squeeze(-1)
    # exp(-inf) * -inf is NaN; a token that cannot be drawn adds nothing to the entropy.
    surprise = torch.where(table.isneginf(), 0.0, table.exp() * table)
    return logprob, -surprise.sum(-1).detach()


@torch.no_grad()
def score_rows(
    hidden: Tensor, head: Head, target_ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """(`[N]` log-prob, `[N]` entropy) without gradients, from `[N, D]` hidden states."""
    size = chunk_size(head.weight.shape[0])
    parts = [
        taken_and_entropy(head.logits(rows), targets, temperature)
        for rows, targets in zip(hidden.split(size), target_ids.split(size), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def student_rows(
    hidden: Tensor,
    head: Head,
    batch: Batch,
    scores: Mapping[str, Scores],
    losses: Sequence[RowLoss],
    temperature: float,
) -> Rows:
    """Every row loss, the taken log-probs and the entropy from one set of student logits.

    `hidden` is `[N, D]` with gradient; teacher logits are rebuilt chunk by chunk from `scores`.
    """
    read = {view: scores[view] for loss in losses for view in loss.views}

    def chunk(
        rows: Tensor, target_ids: Tensor, sampled: Tensor, teacher_rows: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Mapping[str, Tensor]]]:
        logits = head.logits(rows)
        logprob, entropy = taken_and_entropy(logits, target_ids, temperature)
        with torch.no_grad():
            teachers = {view: read[view].head.logits(teacher_rows[view]) for view in read}
        results = [loss.rows(logits, target_ids, sampled, teachers) for loss in losses]
        return logprob, entropy, [r[0] for r in results], [r[1] for r in results]

    outputs = []
    for start in range(0, max(1, hidden.shape[0]), chunk_size(head.weight.shape[0])):
        window = slice(start, start + chunk_size(head.weight.shape[0]))
        teacher_rows = {view: read[view].hidden[window] for view in read}
        outputs.append(
            checkpoint(
                chunk,
                hidden[window],
                batch.target_ids[window],
                batch.sampled_logprob[window],
                teacher_rows,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        )
    logprobs, entropies, chunk_losses, chunk_observed = zip(*outputs, strict=True)
    return Rows(
        logprob=torch.cat(logprobs),
        entropy=torch.cat(entropies),
        losses=tuple(torch.cat(parts) for parts in zip(*chunk_losses, strict=True)),
        observed=tuple(
            {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            for parts in zip(*chunk_observed, strict=True)
        ),
    )
