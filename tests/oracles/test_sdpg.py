"""Gated, scheduled distillation inside a policy gradient: arXiv 2606.04036."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.logits import Logits
from opd.objective.loss import Distill, SampledForwardKL, SampledReverseKL
from opd.objective.schedule import Trapezoid
from tests.batches import batch_of, seen_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of

STUDENT, TEACHER = torch.tensor([0.4, 0.4, 0.2]), torch.tensor([0.7, 0.2, 0.1])
NOTHING = ("terms.distil.coefficient=0", "terms.near.coefficient=0")


def test_the_share_rises_and_falls() -> None:
    share = Trapezoid(peak=0.001, rise=50, fall=100)
    found = [share.at(step, 400) for step in (0, 25, 50, 299, 350, 400)]
    assert found == pytest.approx([0, 0.0005, 0.001, 0.001, 0.0005, 0])


def test_the_whole_divergence_is_the_policy_gradient_of_its_advantage() -> None:
    loss = recipe_terms("sdpg")["distil"].loss
    assert isinstance(loss, Distill)
    logits = STUDENT.log().unsqueeze(0).requires_grad_()
    teachers = {"solution": Logits(TEACHER.log().unsqueeze(0))}
    value, _ = loss.rows(Logits(logits), torch.tensor([0]), torch.zeros(1), teachers)
    assert value.item() == pytest.approx(0.192041993, abs=1e-6)
    (found,) = torch.autograd.grad(value.sum(), logits)
    assert found[0].tolist() == pytest.approx([-0.300663, 0.200442, 0.100221], abs=1e-6)
    advantage = value.detach() - (STUDENT / TEACHER).log()
    expected = [0.751657781, -0.501105187, -0.501105187]
    assert advantage.tolist() == pytest.approx(expected, abs=1e-6)
    assert (STUDENT * advantage).sum().item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(found[0], -STUDENT * advantage)


def test_what_holds_the_student_near_pulls_as_half_the_squared_log_ratio() -> None:
    loss = recipe_terms("sdpg")["near"].loss
    assert isinstance(loss, SampledReverseKL)
    logprob = torch.tensor([math.log(0.5)], requires_grad=True)
    value, _ = loss.tokens(logprob, batch_of([1]), {"initial": seen_of([math.log(0.4)])})
    value.sum().backward()
    assert logprob.grad is not None
    assert logprob.grad.item() ** 2 / 2 == pytest.approx(0.024896522, abs=1e-6)


def test_the_papers_figures_are_of_forward_kl() -> None:
    """The rest is the same."""
    plain, forward = recipe_terms("sdpg"), recipe_terms("sdpg_forward")
    assert forward["near"] == replace(plain["near"], loss=SampledForwardKL(view="initial"))
    assert {n: t for n, t in forward.items() if n != "near"} == {
        n: t for n, t in plain.items() if n != "near"
    }


def test_only_gains_are_distilled(tiny_model_dir: Path) -> None:
    rollouts = draw_trajectories("solution", "initial")
    alone = recipe_terms(
        "sdpg", "terms.near=null", "terms.reinforce=null", "terms.distil.coefficient=1"
    )
    gains = [t for t in rollouts if t.advantage > 0]
    assert 0 < len(gains) < len(rollouts)
    _, found = update_of(tiny_model_dir, alone, rollouts)
    assert distance(found, update_of(tiny_model_dir, alone, gains)[1]) < 1e-5
    losses = [replace(t, advantage=-1.0) for t in rollouts]
    nothing = update_of(tiny_model_dir, alone, losses)[1]
    assert all(bool((value == 0).all()) for value in nothing.values())


def test_shares_of_nothing_leave_the_base_method(tiny_model_dir: Path) -> None:
    rollouts = draw_trajectories("solution", "initial")
    loss, found = update_of(tiny_model_dir, recipe_terms("sdpg", *NOTHING), rollouts)
    expected_loss, expected = update_of(tiny_model_dir, recipe_terms("grpo"), rollouts)
    assert loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6
