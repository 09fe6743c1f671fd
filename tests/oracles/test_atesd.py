"""Adaptive exposure against numbers computed by hand. arXiv 2605.11458."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opd.config import build, load_recipe
from opd.recipe import Recipe
from opd.teacher.exposure import (
    BetaPolicy,
    beta,
    discounted_mean,
    learning_progress,
    normalised,
    policy_loss,
)
from tests.runs import run


def test_the_reward_of_a_decision():
    losses, goals = [1.0, 0.9, 0.95, 0.8], [-0.5, -0.4, -0.6]
    assert learning_progress(losses, 0.9) == pytest.approx(0.2215, abs=1e-6)
    assert discounted_mean(goals, 0.9) == pytest.approx(-0.496678967, abs=1e-6)
    policy = BetaPolicy(hold=3, look_ahead=3, discount=0.9, goal_weight=0.1)
    policy.losses, policy.goals = losses, [*goals, 7.0]
    assert policy.reward() == pytest.approx(0.171832103, abs=1e-6)


def test_the_distribution_of_a_share():
    found = beta(torch.tensor([1.0, 0.0], dtype=torch.float64))
    a, b = found.concentration1, found.concentration0
    assert (a.item(), b.item()) == pytest.approx((2.313261688, 1.693147181), abs=1e-6)
    assert found.mean.item() == pytest.approx(0.577390317, abs=1e-6)
    assert found.mode.item() == pytest.approx(0.654533435, abs=1e-6)
    density = found.log_prob(torch.tensor(0.6, dtype=torch.float64))
    assert density.item() == pytest.approx(0.428867116, abs=1e-6)
    assert found.entropy().item() == pytest.approx(-0.149108987, abs=1e-6)


def test_a_share_of_which_nothing_is_known_but_that_it_is_no_end():
    """Beta(2, 2)."""
    found = beta(torch.full((2,), torch.e - 1, dtype=torch.float64).log())
    density = found.log_prob(torch.tensor(0.5, dtype=torch.float64))
    assert density.item() == pytest.approx(0.405465108, abs=1e-8)
    assert found.entropy().item() == pytest.approx(-0.125092802, abs=1e-8)


def test_the_policys_loss():
    two = torch.tensor(2.0, dtype=torch.float64)
    distribution = torch.distributions.Beta(two, two)
    entropy = distribution.entropy().item()
    advantages = normalised([0.2, 0.1, 0.3, 0.4])
    expected = [-0.447214, -1.341641, 0.447214, 1.341641]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-6)
    samples = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    below = policy_loss(distribution, samples, advantages, -0.1, 1.0)
    assert below.item() == pytest.approx(0.090664746, abs=1e-6)
    above = policy_loss(distribution, samples, advantages, entropy - 0.5, 2.0)
    assert above.item() == pytest.approx(0.090664746 + 2.0 * 0.25, abs=1e-6)


def test_but_for_shares_and_problems_the_recipe_is_its_base():
    own = ("probe=null", "teacher.exposure=1")
    facts = ("problems.where.family=facts", "benchmarks.held_out.where.family=facts", "output=x")
    found = build(Recipe, load_recipe("atesd", (*own, *facts)))
    # What a whole solution never reads.
    part = 'teacher.views.solution.partial_template="$question ref: $solution #$answer"'
    assert found == build(Recipe, load_recipe("opsd", (part, "output=x")))


def test_a_share_of_one_is_the_method_without_shares(tiny_model_dir: Path, tmp_path: Path):
    probe = {"problems": 2, "answers": {"name": "Demonstrations", "read": "solution"}}
    policy = {"name": "BetaPolicy", "hold": 1, "look_ahead": 1, "decisions": 2}
    exposures = {"whole": 1.0, "held": {**policy, "low": 1.0}, "part": {**policy, "high": 0.6}}
    found = {}
    for name, exposure in exposures.items():
        teacher = {"views": {"solution": "Solution"}, "exposure": exposure}
        run(tiny_model_dir, tmp_path / name, teacher=teacher, probe=probe, benchmarks={})
        found[name] = load_file(tmp_path / name / "model" / "model.safetensors")
    assert all(torch.equal(found["whole"][key], found["held"][key]) for key in found["whole"])
    assert any(not torch.equal(found["whole"][key], found["part"][key]) for key in found["whole"])
    lines = (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()
    metrics = [row["metrics"] for row in map(json.loads, lines) if row["kind"] == "update"]
    assert len(metrics) == 4 and max(step["exposure"] for step in metrics) <= 0.6
