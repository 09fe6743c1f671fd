"""The verifier's sign, the teacher's size: arXiv 2604.03128."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.loss import PolicyGradient
from opd.objective.schedule import Constant
from opd.objective.token_credit import Magnitude
from opd.parts import tell
from tests.batches import batch_of, seen_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of

STUDENT, TEACHER = (0.4, 0.4, 0.2), (0.7, 0.2, 0.1)


def credit_of(*overrides: str) -> Magnitude:
    loss = recipe_terms("rlsd", *overrides)["reinforce"].loss
    assert isinstance(loss, PolicyGradient)
    (credit,) = loss.token_credit
    assert isinstance(credit, Magnitude)
    return credit


def advantage_of(credit: Magnitude, advantage: float, gap: float) -> float:
    batch = batch_of([1])
    seen = {"solution": seen_of([gap - 1])}
    return credit(torch.tensor([advantage]), torch.tensor([-1.0]), batch, seen).item()


@pytest.mark.parametrize(
    ("token", "advantage", "shaped"),
    [(0, 1.0, 1.1), (0, -1.0, -0.9), (1, 1.0, 0.9), (1, -1.0, -1.1), (1, 0.0, 0.0)],
)
def test_half_the_size_is_the_teachers(token: int, advantage: float, shaped: float) -> None:
    gap = math.log(TEACHER[token] / STUDENT[token])
    assert advantage_of(credit_of(), advantage, gap) == pytest.approx(shaped, abs=1e-6)


@pytest.mark.parametrize(
    ("advantage", "gap", "shaped"),
    [(1, 0.5, 1.2), (-1, 0.5, -0.8), (1, -0.5, 0.8), (-1, -0.5, -1.2), (1, 0.1, math.exp(0.1))],
)
def test_the_whole_size_is_the_teachers(advantage: float, gap: float, shaped: float) -> None:
    credit = Magnitude(view="solution", share=Constant(value=1.0))
    assert advantage_of(credit, advantage, gap) == pytest.approx(shaped, abs=1e-6)


@pytest.mark.parametrize(
    ("advantage", "raw", "clipped"), [(1.0, 1.75, 1.2), (-1.0, -0.571429, -0.8)]
)
def test_how_much_likelier_the_teacher_finds_the_token(
    advantage: float, raw: float, clipped: float
) -> None:
    """.7 / .4 for a success and .4 / .7 for a failure, before the bound and behind it."""
    gap = math.log(TEACHER[0] / STUDENT[0])
    assert gap == pytest.approx(0.559615788, abs=1e-9)
    whole = replace(credit_of(), share=Constant(value=1.0))
    assert advantage_of(whole, advantage, gap) == pytest.approx(clipped, abs=1e-6)
    free = replace(whole, bound=1 - 1e-9)
    assert advantage_of(free, advantage, gap) == pytest.approx(raw, abs=1e-6)


def test_the_teachers_share_is_gone_after_fifty_steps() -> None:
    """Steps 1, 26 and 51 of the paper, which counts from 1."""
    credit = credit_of()
    for step, share in ((0, 0.5), (25, 0.25), (50, 0.0), (120, 0.0)):
        tell(credit, step, 150)
        shaped = advantage_of(credit, 1.0, 9.0)
        assert shaped == pytest.approx(1 + 0.2 * share, abs=1e-6)


def test_no_share_leaves_the_base_method(tiny_model_dir: Path) -> None:
    rollouts = draw_trajectories()
    nothing = "terms.reinforce.loss.token_credit.0.share=0"
    loss, found = update_of(tiny_model_dir, recipe_terms("rlsd", nothing), rollouts)
    expected_loss, expected = update_of(tiny_model_dir, recipe_terms("grpo"), rollouts)
    assert loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6
    _, shaped = update_of(tiny_model_dir, recipe_terms("rlsd"), rollouts)
    assert 1e-3 < distance(shaped, expected) < 0.2
