"""A policy gradient and a sampled reverse KL to a better model: arXiv 2506.02208."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd.objective.loss import SampledReverseKL
from tests.batches import batch_of, seen_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of

STUDENT, TEACHER = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.7, 0.2, 0.1])


def test_the_mean_gradient_is_the_reverse_kls() -> None:
    loss = recipe_terms("kdrl")["distil"].loss
    assert isinstance(loss, SampledReverseKL)
    logits = STUDENT.log().requires_grad_()
    seen = {"plain": seen_of(TEACHER.log().tolist())}
    value, _ = loss.tokens(logits.log_softmax(-1), batch_of([3]), seen)
    (found,) = torch.autograd.grad((STUDENT * value).sum(), logits)
    assert found.tolist() == pytest.approx([-0.226547, 0.026630, 0.199917], abs=1e-6)
    excess = (STUDENT / TEACHER).log()
    assert value.tolist() == pytest.approx((excess * STUDENT.log()).tolist(), abs=1e-6)


def test_a_share_of_nothing_is_the_policy_gradient(tiny_model_dir: Path) -> None:
    rollouts = draw_trajectories("plain")
    base = recipe_terms("grpo", "terms.reinforce.loss.clip_high=0.2")
    loss, found = update_of(
        tiny_model_dir, recipe_terms("kdrl", "terms.distil.coefficient=0"), rollouts
    )
    expected_loss, expected = update_of(tiny_model_dir, base, rollouts)
    assert loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6
    _, both = update_of(tiny_model_dir, recipe_terms("kdrl"), rollouts)
    assert distance(both, expected) > 1e-3


def test_the_two_losses_add_up(tiny_model_dir: Path) -> None:
    rollouts, terms = draw_trajectories("plain"), recipe_terms("kdrl")
    _, both = update_of(tiny_model_dir, terms, rollouts)
    alone = [update_of(tiny_model_dir, {n: t}, rollouts)[1] for n, t in terms.items()]
    assert distance({n: alone[0][n] + alone[1][n] for n in both}, both) < 1e-5
