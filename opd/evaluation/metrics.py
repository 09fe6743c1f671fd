"""Shares over problems, with intervals that know which response belongs to which problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import fmean, variance

from opd.errors import DataError

Z = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Estimate:
    """A share in [0, 1] with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_over_problems(successes: Sequence[Sequence[bool]]) -> Estimate:
    """avg@k: the mean over problems of the share of their k responses that succeeded.

    Responses to one problem are no independent draws, so what counts is the spread between
    problems: with many problems the interval is the value +- 1.96 standard errors of their means.
    A problem without a judged response is left out; DataError when that leaves none.
    """
    means = [fmean(group) for group in successes if group]
    if not means:
        raise DataError(
            "the benchmark has no response with a verdict, so it has no accuracy; mend the reward"
        )
    return share_over_problems(means, sum(len(group) for group in successes))


def share_over_problems(values: Sequence[float], responses: int) -> Estimate:
    """The mean of one value in [0, 1] a problem, which `responses` were drawn for in all.

    Problems are what varies, so pass@k and maj@k get their interval from the spread of these values
    as avg@k does: about 1.96 standard errors, and more than a point at 0 and 1.
    """
    return wilson(fmean(values), effective_trials(values, responses))


def pass_at(k: int, count: int, successes: int) -> float:
    """The chance that some of `k` responses out of `count`, of which `successes` passed, passes:
    1 - C(count - successes, k) / C(count, k), unbiased. arXiv 2107.03374."""
    assert 0 < k <= count, f"pass@{k} cannot be told from {count} responses"
    return 1.0 - comb(count - successes, k) / comb(count, k)


def majority(votes: Sequence[tuple[str, bool]]) -> float:
    """maj@k of one problem: whether the most frequent answer is right; 0 without a vote.

    A vote is an answer and whether it passed. Of answers that are equally frequent one is drawn in
    thought: the value is the share of them that are right, so no order decides a tie.
    """
    tally: dict[str, list[bool]] = {}
    for answer, passed in votes:
        tally.setdefault(answer, []).append(passed)
    most = max(map(len, tally.values()), default=0)
    return fmean([fmean(group) for group in tally.values() if len(group) == most] or [0.0])


def effective_trials(means: Sequence[float], responses: int) -> float:
    """How many independent responses would vary as much as the mean of `means` does.

    At least one a problem, at most all of them. Problems that all agree do not show how they
    vary, so they count once each.
    """
    value = fmean(means)
    spread = variance(means) / len(means) if len(means) > 1 else 0.0
    if spread == 0.0:
        return len(means)
    return min(max(value * (1.0 - value) / spread, len(means)), responses)


def wilson(value: float, trials: float) -> Estimate:
    """Wilson's score interval (1927): inside [0, 1], and wider than a point at 0 and 1."""
    centre = (value + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    reach = Z * sqrt(value * (1 - value) / trials + Z**2 / (4 * trials**2)) / (1 + Z**2 / trials)
    return Estimate(
        value, min(max(centre - reach, 0.0), value), max(min(centre + reach, 1.0), value)
    )
