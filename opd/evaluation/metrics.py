"""The share of responses that succeed, with an interval that knows which share a problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
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
    responses = sum(len(group) for group in successes)
    return wilson(fmean(means), effective_trials(means, responses))


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
