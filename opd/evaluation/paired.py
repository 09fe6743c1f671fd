"""Two models on the same problems: the difference, its interval, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import numpy as np

RESAMPLES = 10_000
FLIPS = 100_000
LARGEST = 500_000_000
"""Operations that the exact test may take, about two seconds."""


@dataclass(frozen=True)
class Paired:
    """One measure of two models over the problems that both have a verdict on. Shares in [0, 1]."""

    problems: int
    model: float
    against: float
    difference: float
    """`model` - `against`."""
    ci95: tuple[float, float]
    """Percentiles of the paired bootstrap over problems (Efron 1979). Too narrow where only a
    handful of problems differ, and a point where none does: then go by `p`."""
    p: float
    """Two-sided, of the sign-flip test over problems (Fisher 1935): the chance of a difference this
    large if each problem's two results were exchangeable. With one response a problem it is
    McNemar's exact test."""
    exact: bool
    """Every flip was counted; otherwise 100,000 were drawn."""


def paired(
    model: Mapping[str, Sequence[bool]], against: Mapping[str, Sequence[bool]]
) -> Paired | None:
    """Compare problem by problem; each maps a problem to whether its judged responses passed.

    A problem that either side has no verdict on is left out; None when that leaves none.
    """
    both = [name for name, passed in model.items() if passed and against.get(name)]
    if not both:
        return None
    mine = [Fraction(sum(model[name]), len(model[name])) for name in both]
    theirs = [Fraction(sum(against[name]), len(against[name])) for name in both]
    unit = lcm(*(value.denominator for value in (*mine, *theirs)))
    differences = [int((a - b) * unit) for a, b in zip(mine, theirs, strict=True)]
    p, exact = sign_flip(differences)
    low, high = bootstrap(differences)
    count = len(both)
    return Paired(
        problems=count,
        model=float(sum(mine) / count),
        against=float(sum(theirs) / count),
        difference=float(Fraction(sum(differences), unit * count)),
        ci95=(low / unit, high / unit),
        p=p,
        exact=exact,
    )


def sign_flip(differences: Sequence[int]) -> tuple[float, bool]:
    """The two-sided chance that the sum of `differences`, each with a random sign, is at least as
    far from 0 as it is; and whether it is exact."""
    sizes = [abs(value) for value in differences if value]
    observed = abs(sum(differences))
    reach = sum(sizes)
    if reach * len(sizes) > LARGEST:
        return drawn_sign_flip(sizes, observed), False
    if observed == 0:
        return 1.0, True
    chance = np.zeros(2 * reach + 1)  # of each sum from -reach to reach
    chance[reach] = 1.0
    for size in sizes:  # nothing passes an end, so what rolls over is 0
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2
    return float(2 * chance[reach + observed :].sum()), True


def drawn_sign_flip(sizes: Sequence[int], observed: int) -> float:
    """The same from random flips; the observed one counts as drawn, so it is never 0."""
    generator = np.random.default_rng(0)
    values = np.asarray(sizes, dtype=np.float64)
    as_far = 0
    for _ in range(FLIPS // 1000):
        signs = generator.integers(0, 2, size=(1000, len(sizes))) * 2 - 1
        as_far += int((np.abs(signs @ values) >= observed * (1 - 1e-12)).sum())
    return (as_far + 1) / (FLIPS + 1)


def bootstrap(differences: Sequence[int]) -> tuple[float, float]:
    """The middle 95 % of the mean over problems drawn with replacement; always the same draws."""
    generator = np.random.default_rng(0)
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    means = [
        values[generator.integers(0, count, size=(100, count))].mean(axis=1)
        for _ in range(RESAMPLES // 100)
    ]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)
