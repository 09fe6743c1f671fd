"""What a better model gained over the base, extrapolated: arXiv 2602.12125. Worked by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.loss import PolicyGradient
from tests.batches import batch_of, seen_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of

SCALE = "terms.distil.loss.token_credit.1.scale"


@pytest.mark.parametrize(("more", "advantage"), [(0.0, 0.4), (0.25, 0.625), (1.0, 1.3)])
def test_advantage_of_a_token(more: float, advantage: float) -> None:
    loss = recipe_terms("exopd", f"{SCALE}={more}")["distil"].loss
    assert isinstance(loss, PolicyGradient)
    logprob = torch.tensor([-1.0], requires_grad=True)
    batch = batch_of([1], advantage=[9.0], sampled_logprob=logprob.detach())
    seen = {"plain": seen_of([-0.6]), "initial": seen_of([-1.5])}
    loss.tokens(logprob, batch, seen)[0].sum().backward()
    assert logprob.grad is not None and -logprob.grad.item() == pytest.approx(advantage, abs=1e-6)


def test_once_is_distillation_as_it_was(tiny_model_dir: Path) -> None:
    rollouts = draw_trajectories("plain", "initial")
    _, found = update_of(tiny_model_dir, recipe_terms("exopd", f"{SCALE}=0"), rollouts)
    _, expected = update_of(tiny_model_dir, recipe_terms("tmopd"), rollouts)
    assert distance(found, expected) < 1e-6
    same = [replace(t, views=dict.fromkeys(t.views, t.rollout.prompt_ids)) for t in rollouts]
    _, anything = update_of(tiny_model_dir, recipe_terms("exopd"), same)
    assert distance(anything, update_of(tiny_model_dir, recipe_terms("tmopd"), same)[1]) < 1e-6
    assert distance(update_of(tiny_model_dir, recipe_terms("exopd"), rollouts)[1], expected) > 1e-3
