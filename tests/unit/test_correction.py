"""Factors for tokens that another policy drew."""

from __future__ import annotations

import pytest
import torch

from opd.objective.correction import TruncatedImportance, ratio

TRAINED, SAMPLING = torch.tensor([-1.0, -0.5, -2.0]), torch.tensor([-1.2, -0.4, -3.5])


def test_ratio_and_its_truncation() -> None:
    assert ratio(TRAINED, SAMPLING).tolist() == pytest.approx([1.221403, 0.904837, 4.481689])
    truncated = TruncatedImportance(cap=2.0)(TRAINED, SAMPLING)
    assert truncated.tolist() == pytest.approx([1.221403, 0.904837, 2.0], abs=1e-6)


def test_mean_over_a_sequence() -> None:
    drawn = torch.tensor([1.5, 3.0, 0.5]).log()
    factors = TruncatedImportance()(drawn, torch.zeros(3))
    assert factors.mean().item() == pytest.approx(1.333333, abs=1e-6)


def test_factors_carry_no_gradient() -> None:
    logprob = TRAINED.clone().requires_grad_()
    assert not TruncatedImportance()(logprob, SAMPLING).requires_grad


def test_tokens_that_nobody_sampled_are_left_alone() -> None:
    sampled = torch.tensor([float("nan"), -0.4, float("nan")])
    assert TruncatedImportance(cap=0.5)(TRAINED, sampled).tolist() == [1.0, 0.5, 1.0]


def test_log_ratio_beyond_twenty_nats_stays_finite() -> None:
    far = ratio(torch.tensor([0.0, -1000.0]), torch.tensor([-1000.0, 0.0]))
    assert far.log().tolist() == pytest.approx([20.0, -20.0])
