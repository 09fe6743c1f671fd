"""Tests of a difference between two methods over the same seeds and the same problems.

Legend: `S` seeds, `P` problems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mpmath
import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A mean difference, its 95 % interval and the chance of one as large if there were none."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided, of Student's t."""
    freedom: float


def crossed(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Difference:
    """first - second of two `[S, P]` tables; a problem with NaN in any is left out.

    Seeds and problems are both drawn: the variance of the mean is (MSs + MSp - MSe) / (S P), of the
    two-way analysis of variance without replication, at least either mean square alone; degrees of
    freedom by Satterthwaite (1946). With one seed, problems alone vary.
    """
    table = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    table = table[:, ~np.isnan(table).any(axis=0)]
    seeds, problems = table.shape
    mean = float(table.mean())
    of_problem = table.mean(axis=0) - mean
    by_problem = seeds * float((of_problem**2).sum()) / max(1, problems - 1)
    if seeds == 1:
        return student(mean, by_problem / problems, problems - 1)
    of_seed = table.mean(axis=1) - mean
    by_seed = problems * float((of_seed**2).sum()) / (seeds - 1)
    rest = table - mean - of_problem[None, :] - of_seed[:, None]
    error = float((rest**2).sum()) / max(1, (seeds - 1) * (problems - 1))
    squares = ((by_seed, seeds - 1), (by_problem, problems - 1), (-error, None))
    together = sum(square for square, _ in squares)
    if together <= max(by_seed, by_problem):
        square, freedom = max(squares[:2], key=lambda pair: pair[0])
        return student(mean, square / (seeds * problems), freedom)
    parts = by_seed**2 / (seeds - 1) + by_problem**2 / (problems - 1)
    parts += error**2 / ((seeds - 1) * (problems - 1))
    return student(mean, together / (seeds * problems), together**2 / parts)


def by_seed(differences: Sequence[float]) -> Difference:
    """The mean of one difference a seed; its interval is infinite with a single seed."""
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return Difference(float(values.mean()), -math.inf, math.inf, 1.0, 0.0)
    return student(float(values.mean()), float(values.var(ddof=1)) / len(values), len(values) - 1)


def bounded(lows: Sequence[float], values: Sequence[float], highs: Sequence[float]) -> Difference:
    """The mean of one difference a seed, of each of which no more than its bounds is known: the
    interval goes from the low end of the lows' to the high end of the highs'. Its chance is that of
    the less telling bounds."""
    tests = [by_seed(bounds) for bounds in (lows, highs) if all(map(math.isfinite, bounds))]
    middle = by_seed(values)
    low = by_seed(lows).low if all(map(math.isfinite, lows)) else -math.inf
    high = by_seed(highs).high if all(map(math.isfinite, highs)) else math.inf
    is_on_one_side = all(test.value * middle.value > 0 for test in tests)
    chance = max((test.p for test in tests), default=1.0) if is_on_one_side else 1.0
    return Difference(middle.value, low, high, chance, middle.freedom)


def student(mean: float, variance: float, freedom: float) -> Difference:
    """A mean with its estimated variance under Student's t."""
    if variance == 0.0:
        return Difference(mean, mean, mean, 1.0 if mean == 0.0 else 0.0, freedom)
    error = math.sqrt(variance)
    reach = quantile(freedom) * error
    return Difference(mean, mean - reach, mean + reach, two_sided(mean / error, freedom), freedom)


def two_sided(t: float, freedom: float) -> float:
    """P(|T| >= |t|) of Student's t: the regularised incomplete beta function at f / (f + t^2)."""
    at = freedom / (freedom + t * t)
    return float(mpmath.betainc(freedom / 2, 0.5, 0, at, regularized=True))


def quantile(freedom: float) -> float:
    """The t whose two-sided chance is 5 %, by bisection."""
    low, high = 0.0, 1e6
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, freedom) > 1 - LEVEL else (low, middle)
    return high
