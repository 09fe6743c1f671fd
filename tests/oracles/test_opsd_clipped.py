"""arXiv 2601.18734's clip of entries, what it does (2609.38995), and the clips that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd.config import build, load_recipe
from opd.objective.clip import Clip
from opd.objective.divergence import ForwardKL
from opd.objective.logits import Logits
from opd.objective.loss import Distill
from opd.objective.term import Term
from opd.recipe import Recipe
from tests.students import distance, distil, pull_of

S, Q = (0.4, 0.4, 0.2), (0.7, 0.2, 0.1)
EXACT = (-0.3, 0.2, 0.1)


def bounded(clip: Clip, at: float, student: torch.Tensor) -> torch.Tensor:
    """The loss of one row, from the student's logits `[1, V]`."""
    loss = Distill(target="q", divergence=ForwardKL(), clip=clip, clip_at=at)
    nobody = torch.zeros(1, dtype=torch.long)
    teachers = {"q": Logits(torch.tensor([Q], dtype=torch.float64).log())}
    return loss.rows(Logits(student), nobody, nobody, teachers)[0].sum()


@pytest.mark.parametrize(
    ("clip", "at", "value", "gradient"),
    [
        ("none", 0.05, 0.183786897, EXACT),
        ("entry_raw", 0.05, -0.157944154, (0.12, -0.08, -0.04)),
        ("entry_raw", 0.2, -0.007944154, (0.12, -0.08, -0.04)),
        ("entry_nonneg", 0.05, 0.130685282, (-0.04, -0.04, 0.08)),
        ("token_scale", 0.05, 0.05, (-0.081616271, 0.054410848, 0.027205424)),
        ("token_cap", 0.05, 0.05, (0.0, 0.0, 0.0)),
    ],
)
def test_value_and_gradient(
    clip: Clip, at: float, value: float, gradient: tuple[float, ...]
) -> None:
    student = torch.tensor([S], dtype=torch.float64).log().requires_grad_()
    loss = bounded(clip, at, student)
    assert loss.item() == pytest.approx(value, abs=1e-6)
    (pull,) = torch.autograd.grad(loss, student)
    assert pull[0].tolist() == pytest.approx(gradient, abs=1e-6)


def test_the_raw_clip_drives_out_what_the_teacher_wants_most() -> None:
    """2000 steps of descent: the clipped loss falls to its infimum while the KL rises."""
    student = torch.tensor([S], dtype=torch.float64).log().requires_grad_()
    for _ in range(2000):
        (pull,) = torch.autograd.grad(bounded("entry_raw", 0.05, student), student)
        student = (student - 0.5 * pull).detach().requires_grad_()
    found = student.detach().softmax(-1)[0].tolist()
    assert found == pytest.approx((0.002238, 0.665550, 0.332211), abs=1e-6)
    assert bounded("entry_raw", 0.05, student).item() == pytest.approx(-0.310520, abs=1e-6)
    assert bounded("none", 0.05, student).item() == pytest.approx(3.661244, abs=1e-6)
    # Its infimum, where what is clipped has no probability left: .3 log .3 + .05.
    least = torch.tensor([(1e-300, 2 / 3, 1 / 3)], dtype=torch.float64).log().requires_grad_()
    value = bounded("entry_raw", 0.05, least)
    assert value.item() == pytest.approx(-0.311191841, abs=1e-8)
    (pull,) = torch.autograd.grad(value, least)
    assert pull[0].tolist() == pytest.approx((0, 0, 0), abs=1e-9)


def test_a_tokens_scale_is_the_bound_over_its_divergence() -> None:
    student = torch.tensor([S], dtype=torch.float64).log().requires_grad_()
    pulls = [
        torch.autograd.grad(bounded(clip, 0.05, student), student)[0]
        for clip in ("token_scale", "none")
    ]
    assert (pulls[0] / pulls[1])[0].tolist() == pytest.approx([0.05 / 0.183786897] * 3, abs=1e-8)


@pytest.mark.parametrize("name", ["opsd_clipped", "opsd_nonnegative"])
def test_without_a_bound_it_is_plain_distillation(tiny_model_dir: Path, name: str) -> None:
    loss = build(Recipe, load_recipe(name)).terms["distil"].loss
    assert isinstance(loss, Distill) and loss.clip_at == 0.05
    free = Distill(target="solution", divergence=ForwardKL(), clip=loss.clip, clip_at=1e9)
    want = pull_of(tiny_model_dir, {"distil": distil("solution")})
    assert distance(pull_of(tiny_model_dir, {"distil": Term(loss=free)}), want) < 1e-5
