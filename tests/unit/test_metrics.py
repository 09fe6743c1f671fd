"""Accuracies and their intervals: hand-computed, clustered by problem, sane at the edges."""

from __future__ import annotations

import random
from math import sqrt
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.errors import DataError
from opd.evaluation.metrics import effective_trials, mean_over_problems


def test_the_mean_weighs_problems_alike() -> None:
    assert mean_over_problems([[True], [False, False, False, True]]).value == 0.625


def test_yes_or_no_interval_is_wilsons() -> None:
    """81 of 263, Newcombe (1998), table I: 0.2553 to 0.3662."""
    found = mean_over_problems([[True]] * 81 + [[False]] * 182)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


def test_agreeing_problems_count_once_each() -> None:
    """All successes: n / (n + z^2) with n problems, however many responses each has."""
    found = mean_over_problems([[True] * 8] * 100)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(100 / (100 + 1.959964**2), abs=1e-6)
    none = mean_over_problems([[False] * 8] * 100)
    assert none.low == 0.0 and none.high == pytest.approx(1 - found.low)
    assert mean_over_problems([[True]]).low == pytest.approx(1 / (1 + 1.959964**2))


def test_many_problems_give_the_standard_error() -> None:
    generator = random.Random(1)
    groups = [[generator.random() < p for _ in range(8)] for p in [0.1, 0.5, 0.9] * 2000]
    found = mean_over_problems(groups)
    error = stdev([fmean(g) for g in groups]) / sqrt(len(groups))
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.02)
    assert found.value - found.low == pytest.approx(1.96 * error, rel=0.02)


def test_repeating_a_problem_s_answer_adds_nothing() -> None:
    """Eight equal responses a problem tell as much as one."""
    answers = [True] * 30 + [False] * 70
    once, often = (mean_over_problems([[a] * k for a in answers]) for k in (1, 8))
    assert (once.low, once.high) == (often.low, often.high)


def test_effective_trials_stay_between_problems_and_responses() -> None:
    assert effective_trials([0.5, 0.5], 16) == 2
    assert effective_trials([0.0, 1.0], 16) == 2
    assert effective_trials([0.4375, 0.5625], 16) == 16


@pytest.mark.parametrize("rates", [(0.02, 0.02), (0.0, 0.4), (0.0, 1.0), (0.9, 1.0)])
def test_intervals_cover_the_truth(rates: tuple[float, float]) -> None:
    """Half of the problems has one rate, half the other: 95 % of 1,000 intervals, within noise."""
    generator = random.Random(2)

    def covers() -> bool:
        rate = [generator.choice(rates) for _ in range(60)]
        found = mean_over_problems([[generator.random() < p for _ in range(8)] for p in rate])
        return found.low <= fmean(rates) <= found.high

    assert 0.925 <= fmean(covers() for _ in range(1000)) <= 1.0


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=30))
def test_the_interval_holds_its_value_and_stays_in_range(groups: list[list[bool]]) -> None:
    found = mean_over_problems(groups)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    assert found.low < found.high
    assert found.value == pytest.approx(fmean(fmean(group) for group in groups))


def test_unjudged_problems_are_left_out() -> None:
    assert mean_over_problems([[], [True], [False]]) == mean_over_problems([[True], [False]])
    with pytest.raises(DataError, match="no response with a verdict"):
        mean_over_problems([[], []])
