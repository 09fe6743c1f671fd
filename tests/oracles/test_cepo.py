"""The size of a token's advantage by a success in view against a failure: arXiv 2605.19436."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.loss import PolicyGradient
from opd.parts import tell
from tests.batches import batch_of, seen_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of


@pytest.mark.parametrize(
    ("right", "wrong", "advantage", "step", "shaped"),
    [
        (0.7, 0.4, 1.0, 0, 1.1),
        (0.7, 0.4, -1.0, 0, -0.9),
        (0.2, 0.4, 1.0, 0, 0.9),
        (0.44, 0.4, 1.0, 0, 1.05),
        (0.7, 0.4, 1.0, 10, 1.06),
        (0.7, 0.4, 1.0, 25, 1.0),
    ],
)
def test_advantage_of_a_token(
    right: float, wrong: float, advantage: float, step: int, shaped: float
) -> None:
    """Whatever the student itself thinks of the token."""
    loss = recipe_terms("cepo")["reinforce"].loss
    assert isinstance(loss, PolicyGradient)
    tell(loss, step, 150)
    logprob = torch.tensor([-3.0], requires_grad=True)
    batch = batch_of([1], advantage=[advantage], sampled_logprob=logprob.detach())
    seen = {"solution": seen_of([math.log(right)]), "wrong": seen_of([math.log(wrong)])}
    loss.tokens(logprob, batch, seen)[0].sum().backward()
    assert logprob.grad is not None and -logprob.grad.item() == pytest.approx(shaped, abs=1e-6)


def test_groups_without_a_failure_leave_the_base_method(tiny_model_dir: Path) -> None:
    both = draw_trajectories("solution", "wrong")
    blind = [replace(t, views={k: v for k, v in t.views.items() if k != "wrong"}) for t in both]
    terms = recipe_terms("cepo")
    _, found = update_of(tiny_model_dir, terms, blind)
    _, expected = update_of(tiny_model_dir, recipe_terms("grpo"), blind)
    assert distance(found, expected) < 1e-6
    assert distance(update_of(tiny_model_dir, terms, both)[1], expected) > 1e-3
