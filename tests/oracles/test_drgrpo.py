"""Centred rewards and sums over the longest length allowed: arXiv 2503.20783."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.config import build, load_recipe
from opd.recipe import Recipe
from tests.batches import batch_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of


def test_centred_rewards() -> None:
    credit = build(Recipe, load_recipe("drgrpo")).credit
    assert credit.advantages([1.0, 0, 0, 0]) == pytest.approx([0.75, -0.25, -0.25, -0.25])
    assert credit.advantages([1.0, 1.0, 1.0]) == [0, 0, 0]


def test_a_sum_over_the_longest_response() -> None:
    (term,) = recipe_terms("drgrpo").values()
    batch = batch_of([2, 8])
    weight = term.weight(batch, {})
    losses = weight.new_tensor([1.0] * 2 + [0.5] * 8)
    total = term.numerator(losses, weight, batch, 10) / term.mass(weight, batch, 10)
    assert total.item() == pytest.approx(0.3)


def test_another_average_of_the_same_tokens(tiny_model_dir: Path) -> None:
    """7 responses and a budget of 16 tokens: the sums stand in the proportion 7 * 16 to tokens."""
    rollouts = draw_trajectories()
    tokens = sum(len(t.rollout.token_ids) for t in rollouts)
    loss, found = update_of(tiny_model_dir, recipe_terms("drgrpo"), rollouts)
    neutral = recipe_terms("grpo", "terms.reinforce.loss.clip_high=0.2")
    expected_loss, expected = update_of(tiny_model_dir, neutral, rollouts)
    assert loss * 7 * 16 == pytest.approx(expected_loss * tokens, rel=1e-5)
    rescaled = {name: value * 7 * 16 / tokens for name, value in found.items()}
    assert distance(rescaled, expected) < 1e-5
