"""Failures with a teacher are distilled, the rest is compared by reward: arXiv 2604.02288."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.learner.learner import pooled
from opd.objective.credit import GroupMean
from opd.objective.term import Term
from opd.types import Verdict
from tests.batches import batch_of, scores_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of


def joint_loss(terms: dict[str, Term]) -> tuple[float, torch.Tensor]:
    """The loss of two tokens of a success at -1 and of three of a failure at 0.3, 0.2 and 0.1,
    and the pull on each distilled token times their number."""
    batch = batch_of([2, 3], success=[True, False])
    entropy = [0.9, 0.9, 0.0, 0.5, 1.0]
    scores = {"sibling": scores_of(5, entropy=entropy, present=[True] * 5)}
    losses = {"reinforce": [-1.0] * 5, "distil": [9.0, 9.0, 0.3, 0.2, 0.1]}
    weights = {name: term.weight(batch, scores) for name, term in terms.items()}
    totals = {
        name: (term.mass(weights[name], batch, 8).item(), term.count(weights[name], batch).item())
        for name, term in terms.items()
    }
    masses = pooled(terms, totals)
    summands = {
        name: term.numerator(torch.tensor(losses[name]), weights[name], batch, 8) / masses[name]
        for name, term in terms.items()
    }
    return sum(summands.values(), torch.zeros(())).item(), 5 * weights["distil"] / masses["distil"]


def test_one_denominator_and_confidence_of_mean_one() -> None:
    loss, pulls = joint_loss(recipe_terms("srpo"))
    assert loss == pytest.approx(-0.260791, abs=1e-6)
    assert pulls.tolist() == pytest.approx([0, 0, 1.519441, 0.921588, 0.558971], abs=1e-6)
    assert pulls.sum().item() == pytest.approx(3)


def test_without_confidence_every_distilled_token_counts_alike() -> None:
    loss, pulls = joint_loss(recipe_terms("srpo_uniform"))
    assert loss == pytest.approx(-0.28, abs=1e-6)
    assert pulls.tolist() == pytest.approx([0, 0, 1, 1, 1])


def test_centred_rewards_and_those_scaled_by_the_deviation() -> None:
    rewards = [1.0, 0, 0, 1, 0, 0, 0, 0]
    centred = GroupMean(scale=False).advantages(rewards)
    assert centred == pytest.approx([0.75, -0.25, -0.25, 0.75, -0.25, -0.25, -0.25, -0.25])
    scaled = GroupMean(epsilon=1e-6).advantages(rewards)
    assert scaled[0] == pytest.approx(1.620182, abs=1e-6)


def test_responses_that_all_succeed_are_reinforced_alone(tiny_model_dir: Path) -> None:
    solved = [replace(t, verdict=Verdict("pass", 1.0)) for t in draw_trajectories("sibling")]
    terms = recipe_terms("srpo")
    alone = {"reinforce": Term(loss=terms["reinforce"].loss)}
    loss, found = update_of(tiny_model_dir, terms, solved)
    expected_loss, expected = update_of(tiny_model_dir, alone, solved)
    assert loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6


def test_failures_without_a_sibling_are_reinforced(tiny_model_dir: Path) -> None:
    failed = [replace(t, verdict=Verdict("fail", 0.0), views={}) for t in draw_trajectories()]
    terms = recipe_terms("srpo")
    alone = {"reinforce": Term(loss=terms["reinforce"].loss)}
    _, found = update_of(tiny_model_dir, terms, failed)
    assert distance(found, update_of(tiny_model_dir, alone, failed)[1]) < 1e-6


def test_confidence_of_scale_zero_is_no_weight_at_all(tiny_model_dir: Path) -> None:
    routed = draw_trajectories("sibling")
    neutral = recipe_terms("srpo", "terms.distil.weights.1.scale=0")
    loss, found = update_of(tiny_model_dir, neutral, routed)
    expected_loss, expected = update_of(tiny_model_dir, recipe_terms("srpo_uniform"), routed)
    assert loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6
    _, weighed = update_of(tiny_model_dir, recipe_terms("srpo"), routed)
    assert distance(weighed, expected) > 1e-3


@pytest.mark.parametrize("tokens_per_batch", [1, 60])
def test_a_shared_denominator_is_of_the_whole_update(
    tiny_model_dir: Path, tokens_per_batch: int
) -> None:
    routed = draw_trajectories("sibling")
    terms = recipe_terms("srpo")
    whole = update_of(tiny_model_dir, terms, routed)
    split = update_of(tiny_model_dir, terms, routed, tokens_per_batch=tokens_per_batch)
    assert split[0] == pytest.approx(whole[0]) and distance(split[1], whole[1]) < 1e-5
