"""A verifier's and a teacher's advantage blended: arXiv 2601.20802."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.loss import PolicyGradient
from opd.objective.term import Term
from tests.batches import batch_of, seen_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of

PART = "terms.reinforce.loss.token_credit.0"


@pytest.mark.parametrize(
    ("kept", "scale", "advantage", "teacher", "blended"),
    [(0.9, 0.1, -0.5, 0.2, -0.541629), (0.9, 0.1, 1.0, 0.5, 0.9), (0.0, 1.0, 9.0, 0.2, -0.916291)],
)
def test_blended_advantage(
    kept: float, scale: float, advantage: float, teacher: float, blended: float
) -> None:
    terms = recipe_terms("sdpo_advantage", f"{PART}.kept={kept}", f"{PART}.scale={scale}")
    student = torch.tensor([math.log(0.5)], requires_grad=True)
    batch = batch_of([1], advantage=[advantage], sampled_logprob=student.detach())
    loss = terms["reinforce"].loss
    assert isinstance(loss, PolicyGradient)
    value, _ = loss.tokens(student, batch, {"sibling": seen_of([math.log(teacher)])})
    value.sum().backward()
    assert student.grad is not None
    assert student.grad.item() == pytest.approx(-blended, abs=1e-6)


def test_a_blend_that_keeps_all_is_the_policy_gradient(tiny_model_dir: Path) -> None:
    neutral = recipe_terms("sdpo_advantage", f"{PART}.kept=1", f"{PART}.scale=0")
    alone = {"reinforce": Term(loss=PolicyGradient(clip_high=0.28))}
    rollouts = draw_trajectories("sibling")
    loss, found = update_of(tiny_model_dir, neutral, rollouts)
    expected_loss, expected = update_of(tiny_model_dir, alone, rollouts)
    assert loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6


def test_responses_without_a_view_are_reinforced_all_the_same(tiny_model_dir: Path) -> None:
    alone = {"reinforce": Term(loss=PolicyGradient(clip_high=0.28))}
    blend = recipe_terms("sdpo_advantage")
    blind = [replace(t, views={}) for t in draw_trajectories("sibling")]
    _, found = update_of(tiny_model_dir, blend, blind)
    assert distance(found, update_of(tiny_model_dir, alone, blind)[1]) < 1e-6
    _, seeing = update_of(tiny_model_dir, blend, draw_trajectories("sibling"))
    assert distance(seeing, found) > 1e-3
