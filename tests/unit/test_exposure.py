"""How much of a reference is shown when, and how a policy over it learns."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import pytest
import torch

from opd.config import build
from opd.errors import RecipeError
from opd.learner.checkpoint import _check_plain
from opd.teacher.exposure import (
    Annealed,
    BetaPolicy,
    Exposure,
    Fixed,
    Random,
    learning_progress,
    normalised,
)
from opd.types import Update

SEED = 3


def update(step: int, nll: float, goal: float = 0.0) -> Update:
    """What a step reports to a policy."""
    metrics = {
        "loss/distil": 0.5,
        "entropy": 0.7,
        "teacher_gap/solution": -0.2,
        "probe/nll": nll,
        "probe/teacher_logprob/solution": goal,
    }
    return Update(step, 1e-3, 1.0, 10, metrics)


def live(policy: BetaPolicy, first: int, last: int, speed: float = 0.0) -> list[float]:
    """The shares of some steps; the probe's loss falls by `speed` times the share."""
    shares = []
    for step in range(first, last):
        shares.append(policy.at(step, 100, SEED))
        policy.observe(update(step, 5.0 - speed * sum(shares[:-1]), -shares[-1]), ())
    return shares


def test_a_number_is_a_fixed_share() -> None:
    assert build(Exposure, 0.25, "teacher.exposure") == Fixed(share=0.25)
    assert Fixed().at(7, 10, SEED) == 1.0


def test_an_annealed_share_follows_its_schedule() -> None:
    schedule = {"name": "Linear", "start": 1.0, "end": 0.2}
    found = build(Exposure, {"name": "Annealed", "share": schedule})
    assert isinstance(found, Annealed)
    assert [found.at(step, 4, SEED) for step in (0, 2)] == pytest.approx([1.0, 0.6])


def test_a_random_share_is_held_and_depends_on_seed_and_step_only() -> None:
    part = Random(low=0.2, high=0.6, hold=3)
    shares = [part.at(step, 100, SEED) for step in range(30)]
    assert shares[::3] == shares[2::3] and len(set(shares)) == 10
    assert 0.2 <= min(shares) < 0.4 < max(shares) <= 0.6
    assert shares == [Random(low=0.2, high=0.6, hold=3).at(step, 9, SEED) for step in range(30)]
    assert shares != [part.at(step, 100, SEED + 1) for step in range(30)]


def test_a_policy_starts_neutral() -> None:
    for state in ((0.0,) * 6, (0.3, 0.5, -2.0, 9.0, 1.0, 0.1)):
        distribution = BetaPolicy().policy([state])
        expected = 1.0 + torch.log(torch.tensor(2.0)).item()
        assert distribution.concentration1.item() == pytest.approx(expected)
        assert distribution.mean.item() == 0.5


def test_a_decision_is_held_and_finished_later_while_others_begin() -> None:
    policy = BetaPolicy(hold=2, look_ahead=5, decisions=9)
    shares = live(policy, 0, 5)
    assert shares[0] == shares[1] != shares[2] == shares[3] != shares[4]
    assert [decision.step for decision in policy.pending] == [0, 2, 4] and not policy.finished
    live(policy, 5, 8)
    assert [decision.step for decision, _ in policy.finished] == [0, 2]
    assert [decision.step for decision in policy.pending] == [4, 6]


def test_a_reward_looks_from_its_decision_to_the_end_of_its_window() -> None:
    policy = BetaPolicy(hold=2, look_ahead=2, smoothing=0.0, discount=0.5, goal_weight=1.0)
    seen = [(9.0, -7.0), (8.0, -1.0), (4.0, -4.0), (4.0, 0.0), (1.0, -2.0)]
    for step, (nll, goal) in enumerate(seen):
        policy.at(step, 100, SEED)
        policy.observe(update(step, nll, goal), ())
    first, second = policy.finished
    assert (first[0].step, second[0].step) == (0, 2)
    assert first[1] == pytest.approx((1.0 + 0.5 * 4.0) + (-7.0 - 0.5 * 1.0) / 1.5)
    assert second[1] == pytest.approx((0.0 + 0.5 * 3.0) + (-4.0 - 0.5 * 0.0) / 1.5)


def test_a_state_holds_what_was_seen_before_the_decision() -> None:
    policy = BetaPolicy(hold=1, look_ahead=1, smoothing=0.5)
    first = policy.at(0, 4, SEED)
    assert policy.pending[0].state == (0.0,) * 6
    policy.observe(update(0, 3.0), ())
    second = policy.at(1, 4, SEED)
    confidence = 0.4965853
    assert policy.pending[1].state == pytest.approx((0.25, first, 0.5, 0.2, 3.0, confidence))
    policy.observe(update(1, 2.0), ())
    policy.at(2, 4, SEED)
    expected = (0.5, (first + second) / 2, 0.5, 0.2, 2.5, confidence)
    assert policy.pending[-1].state == pytest.approx(expected)
    # Nobody was trained on: what that would tell stays as it was.
    idle = update(2, 2.5)
    bare = {name: idle.metrics[name] for name in idle.metrics if name.startswith("probe/")}
    policy.observe(replace(idle, metrics=bare), ())
    policy.at(3, 4, SEED)
    assert policy.pending[-1].state[2:] == pytest.approx((0.5, 0.2, 2.5, confidence))


def test_a_policy_learns_which_shares_are_followed_by_progress() -> None:
    more = BetaPolicy(hold=1, look_ahead=1, smoothing=0.0, goal_weight=0.0, learning_rate=0.02)
    live(more, 0, 400, speed=0.01)
    fewer = BetaPolicy(hold=2, look_ahead=2, goal_weight=1.0, learning_rate=0.02)
    live(fewer, 0, 800)
    assert more.policy([more.pending[-1].state]).mean.item() > 0.7
    assert fewer.policy([fewer.pending[-1].state]).mean.item() < 0.3
    # A share that is held for one step must be rewarded for what was said in that step.
    once = BetaPolicy(hold=1, look_ahead=1, goal_weight=1.0, learning_rate=0.02)
    live(once, 0, 400)
    assert once.policy([once.pending[-1].state]).mean.item() < 0.3


def test_shares_from_a_bound_on_are_whole() -> None:
    drawn = [
        [part.at(step, 100, SEED) for step in range(40)]
        for part in (
            Random(hold=1),
            Random(hold=1, whole_from=0.6),
            BetaPolicy(hold=1),
            BetaPolicy(hold=1, whole_from=0.6),
        )
    ]
    for free, bound in (drawn[:2], drawn[2:]):
        assert max(free) < 1
        assert bound == [share if share < 0.6 else 1.0 for share in free] and 1.0 in bound
    most = BetaPolicy(hold=1, high=0.5, whole_from=0.6)
    assert max(most.at(step, 100, SEED) for step in range(40)) == 0.5


def test_equal_rewards_teach_nothing() -> None:
    policy = BetaPolicy(hold=1, look_ahead=1, goal_weight=0.0, entropy_weight=0.0)
    before = [parameter.detach().clone() for parameter in policy.policy.parameters]
    live(policy, 0, 20)
    assert not normalised([2.0, 2.0]).any()
    assert all(map(torch.equal, before, policy.policy.parameters))


def test_entropy_above_the_ceiling_is_pressed_down() -> None:
    policy = BetaPolicy(hold=1, look_ahead=1, goal_weight=0.0, entropy_ceiling=-0.5)
    state = (0.0,) * 6
    before = policy.policy([state]).entropy().item()
    live(policy, 0, 20)
    assert policy.policy([state]).entropy().item() < before


def test_what_is_learned_from_is_the_sample_before_its_bounds() -> None:
    policy = BetaPolicy(low=0.5, high=0.5)
    assert policy.at(0, 100, SEED) == 0.5
    assert policy.pending[0].sample != 0.5


@pytest.mark.parametrize("stop", [1, 14, 24])
def test_a_resumed_policy_is_the_same_policy(stop: int) -> None:
    whole = BetaPolicy(hold=2, look_ahead=5, decisions=2, learning_rate=0.1)
    shares = live(whole, 0, stop, speed=0.01)
    state = whole.state_dict()
    _check_plain(state, "state")
    written = io.BytesIO()
    torch.save(state, written)
    written.seek(0)
    resumed = BetaPolicy(hold=2, look_ahead=5, decisions=2, learning_rate=0.1)
    resumed.load_state_dict(torch.load(written, weights_only=True))
    assert shares and live(resumed, stop, 40, 0.01) == live(whole, stop, 40, 0.01)
    assert all(map(torch.equal, whole.policy.parameters, resumed.policy.parameters))


def test_no_generator_of_the_process_is_touched() -> None:
    ours, theirs = random.getstate(), torch.get_rng_state()
    live(BetaPolicy(hold=1, look_ahead=1), 0, 20, speed=0.01)
    Random().at(0, 10, SEED)
    assert random.getstate() == ours and torch.equal(torch.get_rng_state(), theirs)


def test_what_is_lost_takes_nothing_away() -> None:
    draws = random.Random(0)
    for _ in range(100):
        assert learning_progress([draws.uniform(0, 5) for _ in range(7)], 0.9) >= 0.0
    assert learning_progress([1.0, 2.0, 3.0], 0.9) == 0.0


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        ({"name": "BetaPolicy", "hold": 11}, "held no longer than look_ahead"),
        ({"name": "BetaPolicy", "low": 0.5, "high": 0.4}, "low must not exceed high"),
        ({"name": "Random", "low": 0.5, "high": 0.4}, "low must not exceed high"),
        (1.5, "less than or equal to 1"),
    ],
)
def test_bounds_are_refused_with_their_path(tree: object, fault: str) -> None:
    with pytest.raises(RecipeError, match=rf"teacher\.exposure.*{fault}"):
        build(Exposure, tree, "teacher.exposure")
