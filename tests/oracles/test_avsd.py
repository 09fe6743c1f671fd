"""What three views agree on, and a gated share of what one says more: arXiv 2605.20643."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opd.config import build, load_recipe
from opd.objective.loss import Distill
from opd.objective.target import AlignedMean
from opd.privileged import Group, Privileged, Problem
from opd.recipe import Recipe
from opd.types import Message, Prompt, Rollout, Verdict
from tests.students import distance, draw_trajectories, recipe_terms, update_of


def advantage(student: float, said: tuple[float, float, float]) -> float:
    """Target minus student at the taken token, nats, through the recipe's own target."""
    loss = recipe_terms("avsd")["distil"].loss
    assert isinstance(loss, Distill) and isinstance(loss.target, AlignedMean)

    def side(p: float) -> Tensor:
        return torch.tensor([[p, 1 - p]], dtype=torch.float64).log()

    views = dict(zip(loss.target.views, map(side, said), strict=True))
    target, _ = loss.target(side(student), views, torch.zeros(1, dtype=torch.long))
    return (target - side(student))[0, 0].item()


@pytest.mark.parametrize(
    ("student", "said", "expected"),
    [
        (0.2, (0.4, 0.3, 0.5), 0.692479),
        (0.3, (0.6, 0.3, 0.1), -0.115574),
        (0.3, (0.1, 0.12, 0.6), -0.345765),
    ],
)
def test_gated_advantage(student: float, said: tuple[float, float, float], expected: float) -> None:
    assert advantage(student, said) == pytest.approx(expected, abs=1e-6)


def test_views_that_say_what_the_student_says_pull_nowhere() -> None:
    assert advantage(0.3, (0.3, 0.3, 0.3)) == pytest.approx(0, abs=1e-12)


def test_equal_views_are_one_view(tiny_model_dir: Path) -> None:
    """Loss and gradient of the single-view method by reverse KL and without its clip."""
    terms = recipe_terms("avsd")
    names = terms["distil"].views
    same = [
        replace(each, views=dict.fromkeys(names, each.views["solution"]))
        for each in draw_trajectories()
        if "solution" in each.views
    ]
    changes = ("terms.distil.loss.divergence=ReverseKL", "terms.distil.loss.clip=none")
    alone = recipe_terms("opsd", *changes)
    loss, found = update_of(tiny_model_dir, terms, same)
    expected_loss, expected = update_of(tiny_model_dir, alone, same)
    assert loss == pytest.approx(expected_loss, rel=1e-5) and distance(found, expected) < 1e-4


def test_the_three_views_of_a_problem() -> None:
    prompt = Prompt("p", (Message("user", "374+806"),))
    privileged = Privileged(solution="1000+100+80+0", answer="1180")
    rollout = Rollout(prompt, (1,), (2,), (0.0,), 0, "stop", "")
    group = Group(Problem(prompt, privileged), (rollout,), (Verdict("fail", 0.0),))
    views = build(Recipe, load_recipe("avsd")).teacher.views
    shown = {}
    for name, view in views.items():
        messages = view.messages(group, 0)
        assert messages is not None
        shown[name] = messages[-1].content
    assert shown == {
        "solution": "374+806 ref: 1000+100+80+0",
        "partial": "374+806 ref: 1000+100",
        "answer": "374+806 ref: 1180",
    }
