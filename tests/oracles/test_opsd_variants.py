"""One choice of arXiv 2601.18734 at a time: divergence, estimator, entries, weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.config import build, load_recipe
from opd.objective.divergence import JSD, Divergence
from opd.objective.loss import Distill, SampledReverseKL
from opd.objective.schedule import Constant
from opd.objective.support import TopK
from opd.objective.term import Term
from opd.recipe import Recipe
from opd.teacher.weights import EMA, Frozen, Live
from tests.batches import batch_of, seen_of
from tests.rows import D0_STUDENT, D0_TEACHER, pulled
from tests.runs import trained
from tests.students import distance, pull_of, recipe_terms

LOSS = "terms.distil.loss"


def distilled(name: str, *overrides: str) -> Distill:
    loss = recipe_terms(name, *overrides)["distil"].loss
    assert isinstance(loss, Distill)
    return loss


@pytest.mark.parametrize(
    ("name", "value", "gradient"),
    [
        ("opsd", 0.183786897, (-0.3, 0.2, 0.1)),
        ("opsd_reverse", 0.192041993, (-0.30066311, 0.20044207, 0.10022104)),
        ("opsd_jsd", 0.046200829, (-0.0727363, 0.04849086, 0.02424543)),
        ("opsd_topk", 0.183786897, (-0.3, 0.2, 0.1)),
    ],
)
def test_one_row(name: str, value: float, gradient: tuple[float, ...]) -> None:
    found, pull, observed = pulled(distilled(name), D0_STUDENT, solution=D0_TEACHER)
    assert found == pytest.approx(value, abs=1e-8)
    assert pull == pytest.approx(gradient, abs=1e-7)
    assert observed["clipped"].item() == 0


def test_the_top_entries_and_the_rest_as_one() -> None:
    """Two entries and the tail of the notes' row of five, chosen by either side."""
    student, teacher = (0.5, 0.3, 0.1, 0.06, 0.04), (0.2, 0.3, 0.4, 0.06, 0.04)
    small = (f"{LOSS}.support.size=2", f"{LOSS}.support.chosen_by=student")
    value, _, _ = pulled(distilled("opsd_topk", *small), student, solution=teacher)
    assert value == pytest.approx(0.274887220, abs=1e-8)
    mine, theirs = ((0.3, 0.1, 0.6), (0.3, 0.4, 0.3))
    value, _, _ = pulled(distilled("opsd_topk", small[0]), student, solution=teacher)
    assert value == pytest.approx(pulled(distilled("opsd"), mine, solution=theirs)[0], abs=1e-8)


@pytest.mark.parametrize(
    ("taken", "value"), [(0, 0.512770760), (1, -0.635124337), (2, -1.115577351)]
)
def test_sampled_tokens(taken: int, value: float) -> None:
    loss = recipe_terms("opsd_sampled")["distil"].loss
    assert isinstance(loss, SampledReverseKL)
    logprob = torch.tensor([D0_STUDENT[taken]], dtype=torch.float64).log()
    teacher = {"solution": seen_of([torch.tensor(D0_TEACHER[taken]).log().item()])}
    found = loss.tokens(logprob, batch_of([1]), teacher)[0].item()
    assert found == pytest.approx(value, abs=1e-6)


def test_sampled_tokens_pull_as_reverse_kl_on_average() -> None:
    loss = recipe_terms("opsd_sampled")["distil"].loss
    assert isinstance(loss, SampledReverseKL)
    logits = torch.tensor(D0_STUDENT, dtype=torch.float64).log().requires_grad_()
    logprob = logits.log_softmax(-1)
    teacher = {"solution": seen_of(torch.tensor(D0_TEACHER).log().tolist())}
    losses, _ = loss.tokens(logprob, batch_of([3]), teacher)
    (pull,) = torch.autograd.grad((logprob.detach().exp() * losses).sum(), logits)
    assert pull.tolist() == pytest.approx((-0.30066311, 0.20044207, 0.10022104), abs=1e-6)


# Two modes that are both right: one is drawn, and a teacher that sees it says it 3 times as much.


def optimum(divergence: Divergence, base: torch.Tensor) -> torch.Tensor:
    """The student `[2]` that the mean over drawn modes pulls nowhere, by bisection of its odds."""
    teachers = (base * torch.tensor([[3.0, 1.0], [1.0, 3.0]])).log().log_softmax(-1)
    low, high = -25.0, 25.0
    for _ in range(60):
        logits = torch.tensor([(low + high) / 2, 0.0], dtype=base.dtype, requires_grad=True)
        student = logits.log_softmax(-1).expand(2, -1)
        (pull,) = torch.autograd.grad((base * divergence(student, teachers)).sum(), logits)
        low, high = (low, logits[0].item()) if pull[0] > 0 else (logits[0].item(), high)
    return torch.tensor([low, 0.0], dtype=base.dtype).softmax(-1)


@pytest.mark.parametrize(
    ("name", "once"),
    [("opsd_reverse", (0.651397458, 0.348602542)), ("opsd", (0.624242424, 0.375757576))],
)
def test_a_frozen_teacher_widens_a_gap_once_and_a_live_one_without_end(
    name: str, once: tuple[float, float]
) -> None:
    """The frozen teacher's optimum is the same in every round."""
    student = torch.tensor([0.6, 0.4], dtype=torch.float64)
    divergence = distilled(name).divergence
    assert optimum(divergence, student).tolist() == pytest.approx(once, abs=1e-8)
    for _ in range(20):
        student = optimum(divergence, student)
    assert student[0].item() > 0.99999


# Where each is its method, on a real small batch.


def test_nearly_all_of_the_student_in_the_mixture_is_forward_kl(tiny_model_dir: Path) -> None:
    loss = distilled("opsd_jsd")
    assert loss.divergence == JSD(teacher_weight=0.5)
    near = replace(loss, divergence=JSD(teacher_weight=1e-4))
    terms = {"distil": Term(loss=near, coefficient=Constant(value=1e4))}
    # A divergence of more than 2 nats is cut, and a JSD never is one.
    expected = pull_of(tiny_model_dir, recipe_terms("opsd", f"{LOSS}.clip=none"))
    assert distance(pull_of(tiny_model_dir, terms), expected) < 2e-2
    half = {"distil": Term(loss=loss, coefficient=Constant(value=2.0))}
    assert distance(pull_of(tiny_model_dir, half), expected) > 0.1


def test_all_entries_are_the_whole_vocabulary(tiny_model_dir: Path) -> None:
    support = distilled("opsd_topk").support
    assert support == TopK(size=20, chosen_by="teacher", rest="tail")
    whole = recipe_terms("opsd_topk", f"{LOSS}.support.size=9999")
    expected = pull_of(tiny_model_dir, recipe_terms("opsd"))
    assert distance(pull_of(tiny_model_dir, whole), expected) < 1e-5
    few = recipe_terms("opsd_topk", f"{LOSS}.support.size=2")
    assert distance(pull_of(tiny_model_dir, few), expected) > 1e-2


def built(name: str, *overrides: str) -> Recipe:
    return build(Recipe, load_recipe(name, overrides))


def test_an_average_lies_between_the_frozen_and_the_live_teacher(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Decay 1 never moves, and decay 0 is the student itself."""
    kinds = (Frozen(), EMA(decay=1.0), Live(), EMA(decay=0.0))
    assert tuple(built(name).teacher.weights for name in ("opsd", "opsd_live")) == kinds[::2]
    assert built("opsd_ema").teacher.weights == EMA(decay=0.99)
    frozen, still, live, copied = (
        trained(tiny_model_dir, tmp_path / str(number), recipe_terms("opsd"), weights, "solution")
        for number, weights in enumerate(kinds)
    )
    assert distance(still, frozen) == 0 and distance(copied, live) < 3e-5
    assert distance(live, frozen) > 1e-3


@pytest.mark.parametrize(
    ("name", "back"),
    [
        ("opsd_reverse", "terms.distil.loss.divergence=ForwardKL"),
        ("opsd_jsd", "terms.distil.loss.divergence=ForwardKL"),
        ("opsd_topk", "terms.distil.loss.support=Full"),
        ("opsd_ema", "teacher.weights=Frozen"),
        ("opsd_live", "teacher.weights=Frozen"),
    ],
)
def test_nothing_else_differs(name: str, back: str) -> None:
    assert built(name, back, "output=x") == built("opsd", "output=x")
