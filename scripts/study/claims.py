"""Papers' main claims, each decided by a test on the study's own runs.

A claim is *seen* where the 95 % interval of the difference lies on the claimed side of 0, *not
seen* where it excludes an effect as large as the claim's smallest, and otherwise *not testable at
this size*: more seeds, more problems or another task would have to tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal

from pydantic import Field

from opd.config import build, part
from opd.tree import read_yaml

from .found import Found, shares
from .paired import Difference, bounded, by_seed, crossed
from .plan import Budget, Unit

Decision = Literal["seen", "not seen", "not testable at this size"]
Findings = Mapping[str, Sequence[Found]]
"""Row to its finished runs."""

FEWEST_SEEDS = 2
"""With one, nothing tells a method's doing from its seed's."""
SHARES = ("held_out", "untouched")
"""Metrics that are accuracies, tested over seeds and problems."""


@part
class Claim:
    """What a paper says of two rows, as far as a study can hear it."""

    claim: str
    """One sentence."""
    arxiv: str
    rows: Annotated[tuple[str, ...], Field(min_length=2, max_length=2)]
    """The row that is said to do better, or more, than the second."""
    metric: Literal["held_out", "untouched", "spent", "length", "entropy"]
    """`spent` is what it takes to the first evaluation at or above `level`."""
    direction: Literal["higher", "lower"]
    effect: Annotated[float, Field(gt=0)]
    """The smallest that bears the claim out: a share, a ratio of what is spent, tokens of a
    response, or nats."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.8
    unit: Unit | None = None
    """What is spent, and what both rows have spent where they are read; the study's by default."""
    amount: Annotated[float, Field(gt=0)] | None = None
    """Where they are read, if not at the study's budget, or at what all runs have spent in another
    unit."""


@part
class Claims:
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    claim: Claim
    decision: Decision
    reason: str
    difference: Difference | None = None
    """First row minus second; of what is spent the ratio first over second."""


def read_claims(path: Path) -> tuple[Claim, ...]:
    tree = read_yaml(path.read_text(encoding="utf-8"), str(path))
    return build(Claims, {"claims": tree}).claims


def judged(claim: Claim, findings: Findings, budget: Budget) -> Verdict:
    """Decide one claim."""
    missing = [row for row in claim.rows if not findings.get(row)]
    if missing:
        return untested(claim, f"no finished run of {' and '.join(missing)}")
    pairs = paired_runs(*(findings[row] for row in claim.rows))
    if len(pairs) < FEWEST_SEEDS:
        return untested(claim, f"seeds that both rows have finished: {len(pairs)}")
    if claim.metric == "spent":
        return of_spent(claim, pairs, claim.unit or budget.unit)
    budget = read_at(claim, pairs, budget)
    if claim.metric in SHARES:
        return of_shares(claim, pairs, budget)
    first, second = ([run.at(budget) for run in runs] for runs in zip(*pairs, strict=True))
    name = claim.metric
    gaps = [getattr(a, name) - getattr(b, name) for a, b in zip(first, second, strict=True)]
    return decided(claim, by_seed(gaps), claim.effect, f"{len(pairs)} seeds")


def read_at(claim: Claim, pairs: Sequence[tuple[Found, Found]], budget: Budget) -> Budget:
    """Where a claim's rows are read."""
    unit = claim.unit or budget.unit
    if claim.amount is not None:
        return Budget(unit=unit, amount=claim.amount)
    if unit == budget.unit:
        return budget
    ends = [run.spent(run.last, unit) for pair in pairs for run in pair]
    return Budget(unit=unit, amount=min(ends))


def paired_runs(first: Sequence[Found], second: Sequence[Found]) -> list[tuple[Found, Found]]:
    """Runs of one seed, side by side."""
    others = {found.run.seed: found for found in second}
    return [(found, others[found.run.seed]) for found in first if found.run.seed in others]


def difference_of(
    pairs: Sequence[tuple[Found, Found]], budget: Budget, benchmark: str
) -> Difference:
    """First minus second in the sampled accuracy at the budget, over seeds and problems."""
    tables = [
        [shares(run.at(budget, benchmark).by_problem) for run in runs]
        for runs in zip(*pairs, strict=True)
    ]
    return crossed(*tables)


def of_shares(claim: Claim, pairs: Sequence[tuple[Found, Found]], budget: Budget) -> Verdict:
    """Accuracies; there is no room for a gain at the ceiling, nor for a loss at the floor."""
    held = fmean(second.at(budget, claim.metric).sampled for _, second in pairs)
    room = 1 - held if claim.direction == "higher" else held
    if room < claim.effect:
        return untested(claim, f"{claim.rows[1]} is at {100 * held:.1f} %: no room for the effect")
    found = difference_of(pairs, budget, claim.metric)
    problems = len(pairs[0][0].at(budget, claim.metric).by_problem)
    return decided(claim, found, claim.effect, f"{len(pairs)} seeds, {problems} problems")


def of_spent(claim: Claim, pairs: Sequence[tuple[Found, Found]], unit: Unit) -> Verdict:
    """Ratios of what is spent until a level, which lies somewhere between two evaluations: the
    interval holds wherever that is. A run that never gets there counts with all that it spent: less
    than it needs, so that no claim is seen only because the second row stopped."""
    ratios: list[tuple[float, float, float]] = []
    for first, second in pairs:
        found = [run.reached(claim.level, unit) for run in (first, second)]
        if not any(found) or any(bounds is not None and bounds[1] == 0 for bounds in found):
            continue
        ends = [run.spent(run.last, unit) for run in (first, second)]
        (early, late), (other_early, other_late) = (
            bounds or (end, end) for bounds, end in zip(found, ends, strict=True)
        )
        ratios.append((log(early, other_late), log(late, other_late), log(late, other_early)))
    if not ratios:
        return untested(claim, f"no seed comes to {100 * claim.level:.0f} % by training")
    over = f"{len(ratios)} seed{'s' if len(ratios) > 1 else ''}"
    tested = decided(claim, bounded(*zip(*ratios, strict=True)), math.log(claim.effect), over)
    logs = tested.difference
    assert logs is not None, "a tested claim has a difference"
    ratio = Difference(exp(logs.value), exp(logs.low), exp(logs.high), logs.p, logs.freedom)
    return Verdict(claim, tested.decision, tested.reason, ratio)


def log(first: float, second: float) -> float:
    """Of first / second, of which one is positive."""
    if 0 in (first, second):
        return -math.inf if second else math.inf
    return math.log(first / second)


def exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)


def decided(claim: Claim, found: Difference, effect: float, over: str) -> Verdict:
    """The verdict that the interval of a difference leaves."""
    upward = claim.direction == "higher"
    low, high = (found.low, found.high) if upward else (-found.high, -found.low)
    if low > 0:
        return Verdict(claim, "seen", over, found)
    if high < 0:
        return Verdict(claim, "not seen", f"{over}: the opposite is", found)
    if high < effect:
        return Verdict(claim, "not seen", f"{over}: less than the effect", found)
    return untested(claim, f"{over}: the interval holds both nothing and the effect", found)


def untested(claim: Claim, reason: str, found: Difference | None = None) -> Verdict:
    return Verdict(claim, "not testable at this size", reason, found)
