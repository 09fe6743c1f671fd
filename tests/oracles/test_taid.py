"""arXiv 2501.16937: the moving target, its loss and its share of the teacher, by the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from opd.config import build, load_recipe
from opd.objective.divergence import CrossEntropy, ForwardKL
from opd.objective.logits import Logits
from opd.objective.loss import Distill
from opd.objective.schedule import Adaptive, Constant, Linear
from opd.objective.target import Interpolated
from opd.objective.term import Term
from opd.parts import tell
from opd.recipe import Recipe
from opd.types import Update
from tests.students import distance, distil, pull_of

STUDENT, TEACHER = (1.0, 0.0, -1.0), (0.0, 2.0, 0.0)


def moved(share: float, divergence: CrossEntropy | ForwardKL) -> tuple[float, list[float]]:
    """Loss and gradient in the student's logits."""
    target = Interpolated(view="q", share=Constant(value=share))
    student = torch.tensor([STUDENT], dtype=torch.float64, requires_grad=True)
    teachers = {"q": Logits(torch.tensor([TEACHER], dtype=torch.float64))}
    taken = torch.zeros(1, dtype=torch.long)
    loss = Distill(target=target, divergence=divergence)
    value = loss.rows(Logits(student), taken, taken, teachers)[0]
    return value.item(), torch.autograd.grad(value.sum(), student)[0][0].tolist()


def test_the_loss_and_its_gradient() -> None:
    value, gradient = moved(0.4, CrossEntropy())
    assert value == pytest.approx(1.1305876, abs=1e-6)
    assert gradient == pytest.approx((0.268824, -0.239456, -0.029368), abs=1e-6)
    assert moved(0.4, ForwardKL())[0] == pytest.approx(0.1588574, abs=1e-6)
    assert moved(0.0, CrossEntropy())[1] == pytest.approx((0, 0, 0), abs=1e-12)
    whole = torch.tensor(STUDENT).softmax(-1) - torch.tensor(TEACHER).softmax(-1)
    assert moved(1.0, CrossEntropy())[1] == pytest.approx(whole.tolist(), abs=1e-6)


def test_the_target_lies_part_of_the_way_in_logits() -> None:
    """And the gradient is what parts the student from it."""
    target = Interpolated(view="q", share=Constant(value=0.4))
    student, teacher = (torch.tensor([z], dtype=torch.float64) for z in (STUDENT, TEACHER))
    found, _ = target(student, {"q": teacher}, torch.tensor([0]))
    assert found[0].tolist() == pytest.approx((0.6, 0.8, -0.6), abs=1e-9)
    said = found.softmax(-1)[0].tolist()
    assert said == pytest.approx((0.396417, 0.484185, 0.119398), abs=1e-6)
    own = [pull + there for pull, there in zip(moved(0.4, CrossEntropy())[1], said, strict=True)]
    assert own == pytest.approx((0.665241, 0.244728, 0.090031), abs=1e-6)


def shares(schedule: Adaptive, losses: Sequence[float], steps: int) -> list[float]:
    found = []
    for step, loss in enumerate(losses):
        tell(schedule, step, steps)
        schedule.observe(Update(step, 0.0, 0.0, 0, {"loss/distil": loss}), ())
        found.append(schedule.value)
    return found


def test_the_share_keeps_to_the_line_where_progress_is_slow() -> None:
    losses, falls = (2.0, 1.9, 1.95, 1.5), (0.0, 5.0e-4, 2.318421e-4, 2.537216e-3)
    for step, fall in enumerate(falls):
        schedule = Adaptive(metric="loss/distil")
        found = shares(schedule, losses[: step + 1], 1000)
        assert found == pytest.approx((0.4, 0.4006, 0.4012, 0.4018)[: step + 1], abs=1e-9)
        assert schedule.fall == pytest.approx(fall, abs=1e-9)


@pytest.mark.parametrize(
    ("rate", "loss", "fall", "rise"),
    [
        (5e-4, 1.9, 5.0e-4, 1.500375e-4),
        (5e-4, 1.0, 0.005, 1.503750e-4),
        (0.1, 1.0, 0.005, 0.0300750),
    ],
)
def test_the_share_runs_ahead_where_the_loss_falls(
    rate: float, loss: float, fall: float, rise: float
) -> None:
    """From 0.4, where the line lies far below."""
    schedule = Adaptive(metric="loss/distil", rate=rate)
    found = shares(schedule, (2.0, loss), 10**9)[1]
    assert found - 0.4 == pytest.approx(rise, rel=1e-6, abs=1e-9)
    assert schedule.fall == pytest.approx(fall, abs=1e-9)


def test_the_share_ends_at_its_end_and_never_falls() -> None:
    schedule = Adaptive(metric="loss/distil", rate=0.5, momentum=0.5)
    found = shares(schedule, [2.0, 1.0, 5.0, 0.1, 8.0, 1.0, 0.5, 0.2, 0.1, 0.1], 10)
    assert found == sorted(found) and found[-1] <= 1.0
    resting = Adaptive(metric="another/distil", start=0.2)
    assert set(shares(resting, (2.0, 1.0), 10)) == {0.2}


def test_the_recipe_moves_by_its_own_loss() -> None:
    recipe = build(Recipe, load_recipe("taid"))
    loss = recipe.terms["distil"].loss
    assert isinstance(loss, Distill) and isinstance(loss.target, Interpolated)
    assert loss.target.share == Adaptive(metric="loss/distil", start=0.4)
    assert loss.divergence == CrossEntropy()


def test_at_the_end_it_is_plain_distillation(tiny_model_dir: Path) -> None:
    """And a schedule inside a term is at the step of the update: at 9 of 10 the line is at 1."""
    share = Linear(start=0.1, end=1.0, steps=9)
    target = Interpolated(view="solution", share=share)
    term = Term(loss=Distill(target=target, divergence=CrossEntropy()))
    want = pull_of(tiny_model_dir, {"distil": distil("solution")})
    assert distance(pull_of(tiny_model_dir, {"distil": term}, step=9), want) < 1e-5
    assert distance(pull_of(tiny_model_dir, {"distil": term}, step=0), want) > 0.5
