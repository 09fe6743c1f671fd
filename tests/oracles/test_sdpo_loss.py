"""A convex sum of the verifier's and the teacher's loss, as TRL has it for arXiv 2601.20802."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.batches import batch_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of


@pytest.mark.parametrize(("share", "total"), [(0.0, -1.0), (0.5, -0.35), (1.0, 0.3)])
def test_a_convex_sum_of_means(share: float, total: float) -> None:
    terms = recipe_terms(
        "sdpo_loss",
        f"terms.reinforce.coefficient={1 - share}",
        f"terms.distil.coefficient={share}",
    )
    losses, batch = {"reinforce": -1.0, "distil": 0.3}, batch_of([2, 3])
    found = 0.0
    for name, term in terms.items():
        each = batch.sampled_logprob * 0 + losses[name]
        mean = term.numerator(each, each * 0 + 1, batch, 8) / term.mass(each * 0 + 1, batch, 8)
        found += term.coefficient.at(0, 1) * mean.item()
    assert found == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize(("gone", "base"), [("distil", "grpo"), ("reinforce", "sdpo")])
def test_a_share_of_nothing_is_one_of_the_two(tiny_model_dir: Path, gone: str, base: str) -> None:
    shares = {"distil": 1.0, "reinforce": 1.0, gone: 0.0}
    terms = recipe_terms(
        "sdpo_loss", *(f"terms.{name}.coefficient={share}" for name, share in shares.items())
    )
    rollouts = draw_trajectories("sibling")
    loss, found = update_of(tiny_model_dir, terms, rollouts)
    expected_loss, expected = update_of(tiny_model_dir, recipe_terms(base), rollouts)
    assert loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6
