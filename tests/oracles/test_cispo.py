"""Importance weights that are cut while every token keeps its gradient: arXiv 2506.13585."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.loss import PolicyGradient
from tests.batches import batch_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of


@pytest.mark.parametrize(
    ("ratio", "advantage", "pull"),
    [(1.5, 1.0, 1.5), (1.5, -1.0, -1.5), (8.0, 1.0, 5.0), (8.0, -1.0, -5.0), (0.5, 2.0, 1.0)],
)
def test_gradient_of_a_token(ratio: float, advantage: float, pull: float) -> None:
    loss = recipe_terms("cispo")["reinforce"].loss
    assert isinstance(loss, PolicyGradient)
    logprob = torch.tensor([-0.5], requires_grad=True)
    sampled = logprob.detach() - math.log(ratio)
    batch = batch_of([1], advantage=[advantage], sampled_logprob=sampled)
    loss.tokens(logprob, batch, {})[0].sum().backward()
    assert logprob.grad is not None and logprob.grad.item() == pytest.approx(-pull, abs=1e-6)


def test_ratios_within_every_bound_leave_the_base_method(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far bounds: the clipped surrogate and the cut weight have one gradient."""
    rollouts = [
        replace(t, rollout=replace(t.rollout, logprobs=(-4.5,) * len(t.rollout.token_ids)))
        for t in draw_trajectories()
    ]
    mine = recipe_terms("cispo", "terms.reinforce.loss.correction.cap=1e6")
    clip = ("terms.reinforce.loss.clip_low=1", "terms.reinforce.loss.clip_high=.inf")
    _, found = update_of(tiny_model_dir, mine, rollouts)
    _, expected = update_of(tiny_model_dir, recipe_terms("grpo", *clip), rollouts)
    assert distance(found, expected) < 1e-5
    _, cut = update_of(
        tiny_model_dir, recipe_terms("cispo", "terms.reinforce.loss.correction.cap=0.5"), rollouts
    )
    assert distance(cut, expected) > 1e-2
