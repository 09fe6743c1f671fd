"""What an update measures beside its losses: sums over its micro-batches, then over all ranks.

A name starts with `sum:`, with `count:` of what its sum is a mean over, or with `max:`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from accelerate.utils import gather_object
from torch import Tensor

from opd.learner.rows import Rows
from opd.types import Batch, Scores

QUARTERS = 4


def over_ranks(totals: Mapping[str, float]) -> dict[str, float]:
    """Sums, means where a count stands beside the sum, and largest values of all ranks. A mean over
    nothing is left out."""
    ranks: list[Mapping[str, float]] = gather_object([dict(totals)])
    names = sorted({name for rank in ranks for name in rank})
    found: dict[str, float] = {}
    for name in names:
        values = [rank[name] for rank in ranks if name in rank]
        found[name] = max(values) if name.startswith("max:") else sum(values)
    metrics: dict[str, float] = {}
    for name, value in found.items():
        kind, _, key = name.partition(":")
        if kind != "count" and (count := found.get(f"count:{key}", 1.0)):
            metrics[key] = value / count
    return metrics


def add_mean(totals: dict[str, float], name: str, values: Tensor) -> None:
    """Let `values` count in the mean of that name."""
    totals[f"sum:{name}"] += values.sum().item()
    totals[f"count:{name}"] += values.numel()


def observe(
    rows: Rows, batch: Batch, scores: Mapping[str, Scores], totals: dict[str, float]
) -> None:
    """Add entropy, sampler mismatch and the teachers' gaps on the taken tokens to `totals`, the
    gaps also for each quarter of the responses."""
    add = partial(add_mean, totals)
    logprob, quarter = rows.logprob, quarters(batch)
    add("entropy", rows.entropy)
    sampled = ~batch.sampled_logprob.isnan()
    mismatch = (logprob - batch.sampled_logprob)[sampled].abs()
    add("mismatch/mean", mismatch)
    largest = mismatch.max().item() if mismatch.numel() else 0.0
    totals["max:mismatch/max"] = max(totals["max:mismatch/max"], largest)
    for view, seen in scores.items():
        add(f"teacher_present/{view}", seen.present.float())
        if view in rows.teachers:
            (taken, entropy), known = rows.teachers[view], seen.present & rows.counts
        elif seen.is_scored:
            taken, entropy, known = seen.logprob, seen.entropy, seen.present
        else:
            continue
        add(f"teacher_gap/{view}", (taken - logprob)[known])
        for number in range(QUARTERS):
            here = known & (quarter == number)
            add(f"teacher_gap_by_quarter/{view}/{number + 1}", (taken - logprob)[here])
        add(f"teacher_entropy/{view}", entropy[known])


def quarters(batch: Batch) -> Tensor:
    """`[N]` the quarter, from 0, of its response in which each token stands."""
    lengths = torch.bincount(batch.sequence, minlength=batch.sequences)[batch.sequence]
    return QUARTERS * batch.position // lengths
