"""Rewards of a group to advantages."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.objective.credit import Credit, GroupMean, LeaveOneOut, Overlong
from tests.batches import group

REWARDS = st.lists(st.floats(-5, 5), min_size=1, max_size=8)
EVERY = (
    GroupMean(),
    GroupMean(ddof=0),
    GroupMean(scale=False),
    LeaveOneOut(),
    Overlong(limit=8, buffer=4),
)


@pytest.mark.parametrize(
    ("credit", "rewards", "advantages"),
    [
        (GroupMean(), [1, 0, 0, 1], [0.865875, -0.865875, -0.865875, 0.865875]),
        (GroupMean(), [1, 0, 0, 0], [1.4997, -0.4999, -0.4999, -0.4999]),
        (GroupMean(ddof=0), [1, 0, 0, 0], [1.73165, -0.57722, -0.57722, -0.57722]),
        (GroupMean(scale=False), [1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
        (
            GroupMean(scale=False),
            [1, 0, 0, 1, 0, 0, 0, 0],
            [0.75, -0.25, -0.25, 0.75] + [-0.25] * 4,
        ),
        (LeaveOneOut(), [1, 0, 0, 0], [1.0, -1 / 3, -1 / 3, -1 / 3]),
        (LeaveOneOut(), [1, 0.5], [0.5, -0.5]),
    ],
)
def test_value(credit: Credit, rewards: list[float | None], advantages: list[float]) -> None:
    assert credit(group(rewards)) == pytest.approx(advantages, abs=6e-6)


def test_deviation_of_eight_rewards() -> None:
    credit = GroupMean(epsilon=1e-6)
    assert credit(group([1, 0, 0, 1, 0, 0, 0, 0]))[0] == pytest.approx(1.620182, abs=1e-6)


@pytest.mark.parametrize("credit", EVERY, ids=repr)
@given(rewards=REWARDS)
def test_advantages_are_finite_centred_and_in_the_order_of_rewards(
    credit: Credit, rewards: list[float]
) -> None:
    advantages = credit(group([*rewards]))
    assert all(math.isfinite(a) for a in advantages)
    assert sum(advantages) == pytest.approx(0.0, abs=1e-6)
    by_reward = [a for _, a in sorted(zip(rewards, advantages, strict=True))]
    assert all(low <= high + 1e-6 for low, high in pairwise(by_reward))


@pytest.mark.parametrize("credit", EVERY, ids=repr)
@pytest.mark.parametrize("rewards", [[1.0], [1.0, 1.0, 1.0], [None], [None, None], []])
def test_no_difference_gives_no_advantage(credit: Credit, rewards: list[float | None]) -> None:
    assert credit(group(rewards)) == [0.0] * len(rewards)


@pytest.mark.parametrize("credit", EVERY, ids=repr)
@given(rewards=REWARDS, place=st.integers(0, 8))
def test_a_missing_verdict_gets_zero_and_moves_nobody(
    credit: Credit, rewards: list[float], place: int
) -> None:
    place = min(place, len(rewards))
    advantages = credit(group([*rewards[:place], None, *rewards[place:]]))
    assert advantages.pop(place) == 0.0
    assert advantages == credit(group([*rewards]))


def test_an_overlong_buffer_fits_its_limit() -> None:
    with pytest.raises(ValueError, match="exceed"):
        Overlong(limit=4, buffer=5)
