"""A copy that is told to be brief teaches the student that is not: arXiv 2603.05433."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.config import build, load_recipe
from opd.objective.divergence import ReverseKL
from opd.objective.loss import Distill
from opd.recipe import Recipe
from opd.teacher.weights import Periodic
from tests.students import draw_trajectories, open_student, recipe_terms, update_of


def test_the_copy_is_taken_after_every_fiftieth_update(tiny_model_dir: Path) -> None:
    """The initial weights until update 49, counted from 0; those after it from update 50 on."""
    weights = build(Recipe, load_recipe("crisp")).teacher.weights
    assert isinstance(weights, Periodic)
    learner = open_student(tiny_model_dir)
    weights.setup(learner)
    first, last = learner.parameters[0], next(iter(weights.average.parameters()))
    initial = first.detach().clone()
    read = []
    for step in range(102):
        read.append(last.detach().clone())
        first.data.copy_(initial + step + 1)
        weights.follow(learner)
    for step, copied in ((0, 0), (1, 0), (49, 0), (50, 50), (99, 50), (100, 100), (101, 100)):
        assert torch.equal(read[step], initial + copied), step


def test_an_empty_instruction_and_a_fresh_copy_teach_nothing(tiny_model_dir: Path) -> None:
    rollouts = [
        replace(each, views={"brief": each.rollout.prompt_ids}) for each in draw_trajectories()
    ]
    loss, found = update_of(tiny_model_dir, recipe_terms("crisp"), rollouts)
    assert loss == pytest.approx(0, abs=1e-6)
    assert max(float(value.abs().max()) for value in found.values()) < 1e-6


def test_the_mode_seeking_divergence_by_hand() -> None:
    """Reverse KL of s = (.4, .4, .2) from q = (.7, .2, .1), and its pull on the logits."""
    loss = recipe_terms("crisp")["distil"].loss
    assert isinstance(loss, Distill) and isinstance(loss.divergence, ReverseKL)
    scores = torch.tensor([[0.4, 0.4, 0.2]], dtype=torch.float64).log().requires_grad_()
    target = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    distance = loss.divergence(scores.log_softmax(-1), target)
    distance.sum().backward()
    assert distance.item() == pytest.approx(0.192041993, abs=1e-6)
    assert scores.grad is not None
    expected = [-0.30066311, 0.20044207, 0.10022104]
    assert scores.grad[0].tolist() == pytest.approx(expected, abs=1e-6)
