"""A log-ratio as a token's reward, bounded from below: arXiv 2603.11137."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd.objective.loss import PolicyGradient
from tests.batches import batch_of, seen_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of

FLOOR = -2.558427881
"""log 0.1 / (1 - 0.1)."""


@pytest.mark.parametrize(("gap", "reward"), [(-20.0, FLOOR), (-2.5, -2.5), (0.0, 0.0), (3.0, 3.0)])
def test_reward_of_a_token(gap: float, reward: float) -> None:
    loss = recipe_terms("reopold")["distil"].loss
    assert isinstance(loss, PolicyGradient)
    logprob = torch.tensor([-1.0], requires_grad=True)
    batch = batch_of([1], sampled_logprob=logprob.detach())
    loss.tokens(logprob, batch, {"plain": seen_of([gap - 1])})[0].sum().backward()
    assert logprob.grad is not None and -logprob.grad.item() == pytest.approx(reward, abs=1e-6)


def test_a_floor_that_nothing_reaches_is_no_floor(tiny_model_dir: Path) -> None:
    rollouts = draw_trajectories("plain")
    floor = "terms.distil.loss.token_credit.0.floor"
    _, found = update_of(tiny_model_dir, recipe_terms("reopold", f"{floor}=-99"), rollouts)
    _, expected = update_of(tiny_model_dir, recipe_terms("tmopd"), rollouts)
    assert distance(found, expected) < 1e-6
    _, bounded = update_of(tiny_model_dir, recipe_terms("reopold", f"{floor}=0"), rollouts)
    assert distance(bounded, expected) > 1e-3
