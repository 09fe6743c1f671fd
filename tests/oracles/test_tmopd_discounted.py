"""Discounted sums of the log-ratios to come as advantages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd.objective.sequence_loss import ReturnToGo
from tests.batches import batch_of, seen_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of


@pytest.mark.parametrize(
    ("discount", "returns"),
    [(0.5, (-0.225, -0.85, 0.5)), (0.0, (0.2, -1.1, 0.5)), (1.0, (-0.4, -0.6, 0.5))],
)
def test_discounted_sums(discount: float, returns: tuple[float, ...]) -> None:
    """Of 0.2, -1.1 and 0.5, and of a response beside it."""
    terms = recipe_terms("tmopd_discounted", f"terms.distil.loss.discount={discount}")
    loss = terms["distil"].loss
    assert isinstance(loss, ReturnToGo)
    sampled = torch.tensor([-0.3, -1.2, -0.9, -2.0])
    logprob = sampled.clone().requires_grad_()
    seen = {"plain": seen_of([-0.1, -2.3, -0.4, -1.0])}
    batch = batch_of([3, 1], sampled_logprob=sampled)
    loss.sequences(logprob, batch, seen)[0].sum().backward()
    assert logprob.grad is not None
    assert (-logprob.grad).tolist() == pytest.approx([*returns, 1.0], abs=1e-6)


def test_without_a_discount_to_come_it_is_the_base_method(tiny_model_dir: Path) -> None:
    rollouts = [t for t in draw_trajectories("plain") if t.views]
    alone = recipe_terms("tmopd_discounted", "terms.distil.loss.discount=0")
    base = recipe_terms("tmopd", "terms.distil.loss.token_credit.0.student=trained")
    loss, found = update_of(tiny_model_dir, alone, rollouts)
    expected_loss, expected = update_of(tiny_model_dir, base, rollouts)
    assert loss == pytest.approx(expected_loss, rel=1e-5) and distance(found, expected) < 1e-5
