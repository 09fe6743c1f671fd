"""What each clip does to the value, the gradient and the outcome of training."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from opd.objective.clip import Clip, clipped
from opd.objective.divergence import ForwardKL

STUDENT, TEACHER = (0.4, 0.4, 0.2), (0.7, 0.2, 0.1)


def value_gradient_share(clip: Clip, clip_at: float) -> tuple[float, list[float], float]:
    logits = torch.tensor([STUDENT]).log().requires_grad_()
    target = torch.tensor([TEACHER]).log()
    value, observed = clipped(ForwardKL(), logits.log_softmax(-1), target, clip, clip_at)
    value.sum().backward()
    assert logits.grad is not None and not any(each.requires_grad for each in observed.values())
    share = observed["clipped"].item() if clip != "none" else 0.0
    return value.item(), logits.grad[0].tolist(), share


@pytest.mark.parametrize(
    ("clip", "clip_at", "value", "gradient", "share"),
    [
        ("none", 0.05, 0.183786897, (-0.3, 0.2, 0.1), 0.0),
        ("token_scale", 0.05, 0.05, (-0.081616271, 0.054410848, 0.027205424), 1.0),
        ("token_scale", 0.2, 0.183786897, (-0.3, 0.2, 0.1), 0.0),
        ("token_cap", 0.05, 0.05, (0.0, 0.0, 0.0), 1.0),
        ("token_cap", 0.2, 0.183786897, (-0.3, 0.2, 0.1), 0.0),
        ("entry_nonneg", 0.05, 0.130685282, (-0.04, -0.04, 0.08), 2 / 3),
        ("entry_raw", 0.05, -0.157944154, (0.12, -0.08, -0.04), 1 / 3),
        ("entry_raw", 0.2, -0.007944154, (0.12, -0.08, -0.04), 1 / 3),
    ],
)
def test_value_gradient_and_share(
    clip: Clip, clip_at: float, value: float, gradient: tuple[float, ...], share: float
) -> None:
    found = value_gradient_share(clip, clip_at)
    assert found[0] == pytest.approx(value, abs=1e-6)
    assert found[1] == pytest.approx(gradient, abs=1e-6)
    assert found[2] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("clip", get_args(Clip))
def test_equal_rows_give_zero_and_no_gradient(clip: Clip) -> None:
    logits = torch.tensor([TEACHER]).log().requires_grad_()
    target = logits.detach().log_softmax(-1)
    value, observed = clipped(ForwardKL(), logits.log_softmax(-1), target, clip, 0.05)
    value.sum().backward()
    assert logits.grad is not None
    assert abs(value.item()) < 1e-6 and all(each.item() == 0 for each in observed.values())
    assert logits.grad.abs().max() < 1e-6


def test_what_a_clip_of_entries_cuts_off() -> None:
    """Of raw entries the one that the teacher wants raised, 0.7 log(0.7 / 0.4) = 0.391731; made
    non-negative also one that it wants lowered: 0.091731, and 0.2 log 0.5 + 0.2 = 0.061371."""
    student, target = torch.tensor([STUDENT]).log(), torch.tensor([TEACHER]).log()
    _, raw = clipped(ForwardKL(), student, target, "entry_raw", 0.05)
    assert raw["cut"].item() == pytest.approx(0.341731, abs=1e-6)
    assert raw["cut_of_raised"].item() == pytest.approx(0.341731, abs=1e-6)
    _, mended = clipped(ForwardKL(), student, target, "entry_nonneg", 0.05)
    assert mended["cut"].item() == pytest.approx(0.041731 + 0.011371, abs=1e-6)
    assert mended["cut_of_raised"].item() == pytest.approx(0.041731, abs=1e-6)


def descend(clip: Clip) -> Tensor:
    logits = torch.tensor([STUDENT], dtype=torch.float64).log().requires_grad_()
    target = torch.tensor([TEACHER], dtype=torch.float64).log()
    for _ in range(2000):
        value, _ = clipped(ForwardKL(), logits.log_softmax(-1), target, clip, 0.05)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        logits = (logits - 0.5 * gradient).detach().requires_grad_()
    return logits.detach().softmax(-1)


def test_raw_entries_drive_the_student_away_and_scaled_tokens_do_not() -> None:
    """arXiv 2609.38995: the teacher's favourite token is pushed out of the student."""
    target = torch.tensor([TEACHER], dtype=torch.float64).log()
    astray = descend("entry_raw")
    assert astray[0].tolist() == pytest.approx((0.002238, 0.665550, 0.332211), abs=1e-6)
    assert ForwardKL()(astray.log(), target).item() == pytest.approx(3.661244, abs=1e-5)
    value, _ = clipped(ForwardKL(), astray.log(), target, "entry_raw", 0.05)
    assert value.item() == pytest.approx(-0.310520, abs=1e-6)
    assert descend("token_scale")[0].tolist() == pytest.approx(TEACHER, abs=1e-6)
