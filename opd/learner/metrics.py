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
EVERY = 16
"""Of a view whose rows no loss has read whole, one in so many tokens is compared with the student:
a product with the head for each would cost as much as a loss."""


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
    gaps also for each quarter of the responses; those of another tokenizer's spans on the whole
    spans."""
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
        known = compared(view, seen, rows)
        if view in rows.teachers:
            taken, entropy = (column[known] for column in rows.teachers[view])
        elif seen.is_scored:
            taken, entropy = seen.logprob[known], seen.entropy[known]
        else:
            taken, entropy = seen.at(known)
        gap = taken - over_spans(logprob, seen)[known]
        add(f"teacher_gap/{view}", gap)
        for number in range(QUARTERS):
            in_quarter = gap[quarter[known] == number]
            add(f"teacher_gap_by_quarter/{view}/{number + 1}", in_quarter)
        add(f"teacher_entropy/{view}", entropy)


def compared(view: str, seen: Scores, rows: Rows) -> Tensor:
    """Places of the tokens at which a view is compared with the student."""
    known = seen.present if seen.spans is None else seen.present & (seen.spans.length > 0)
    if view in rows.teachers:
        known = known & rows.counts
    places = known.nonzero().squeeze(-1)
    return places if view in rows.teachers or seen.is_scored else places[::EVERY]


def over_spans(logprob: Tensor, seen: Scores) -> Tensor:
    """`[N]` the student's log-probs; where a teacher's spans end, of the whole span."""
    if seen.spans is None:
        return logprob
    total = logprob.double().cumsum(0)
    before = torch.arange(len(total), device=total.device) - seen.spans.length
    start = total[before.clamp(min=0)].masked_fill(before < 0, 0.0)
    return (total - start).to(logprob.dtype)


def quarters(batch: Batch) -> Tensor:
    """`[N]` the quarter, from 0, of its response in which each token stands."""
    lengths = torch.bincount(batch.sequence, minlength=batch.sequences)[batch.sequence]
    return QUARTERS * batch.position // lengths
