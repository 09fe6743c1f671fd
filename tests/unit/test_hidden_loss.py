"""Losses of hidden states: values by hand, gradients, and what stands for a pair."""

from __future__ import annotations

import math

import pytest
import torch

from opd.errors import RecipeError
from opd.objective.hidden_loss import HiddenInformation, HiddenSquares
from tests.batches import batch_of


@pytest.mark.parametrize(("over", "value"), [("mean", 3.5), ("sum", 14.0)])
def test_squares_over_the_width(over, value: float) -> None:
    hidden = torch.tensor([[1.0, 2.0, 3.0, 4.0]], requires_grad=True)
    loss, _ = HiddenSquares(view="plain", over=over).states(
        hidden, batch_of([1]), {"plain": torch.ones(1, 4)}
    )
    assert loss.tolist() == [value]
    loss.sum().backward()
    expected = torch.tensor([[0.0, 2.0, 4.0, 6.0]]) / (4 if over == "mean" else 1)
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, expected)


def test_half_precision_states_are_raised_before_they_are_squared() -> None:
    hidden = torch.full((1, 2), 300.0).bfloat16()
    loss, _ = HiddenSquares(view="plain").states(
        hidden, batch_of([1]), {"plain": torch.full((1, 2), 1.0).bfloat16()}
    )
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx((300 - 1) ** 2, rel=4e-3)


def test_a_teacher_of_another_width_is_refused() -> None:
    with pytest.raises(RecipeError, match="'plain' are 3 wide, the student's 2"):
        HiddenSquares(view="plain").states(
            torch.zeros(1, 2), batch_of([1]), {"plain": torch.zeros(1, 3)}
        )


def test_information_of_equal_states_nears_the_log_of_their_number() -> None:
    states = torch.eye(4)
    loss, _ = HiddenInformation(view="plain", alpha=1.0, temperature=0.02).states(
        states, batch_of([4]), {"plain": states}
    )
    assert loss.tolist() == pytest.approx([-math.log(4)] * 4, abs=1e-6)


def test_information_counts_the_pairs_of_one_response_only() -> None:
    generator = torch.Generator().manual_seed(0)
    mine, theirs = torch.randn(2, 5, 6, generator=generator)
    loss = HiddenInformation(view="plain")
    both, _ = loss.states(mine, batch_of([2, 0, 3]), {"plain": theirs})
    first, _ = loss.states(mine[:2], batch_of([2]), {"plain": theirs[:2]})
    second, _ = loss.states(mine[2:], batch_of([3]), {"plain": theirs[2:]})
    torch.testing.assert_close(both, torch.cat([first, second]))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_information_stays_below_its_bound_and_finite(alpha: float) -> None:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(6, 3, generator=generator, requires_grad=True)
    loss, _ = HiddenInformation(view="plain", alpha=alpha, temperature=0.05).states(
        states, batch_of([6]), {"plain": torch.randn(6, 3, generator=generator)}
    )
    loss.mean().backward()
    assert states.grad is not None and bool(states.grad.isfinite().all())
    assert alpha == 0 or -loss.mean().item() <= math.log(6 / alpha)


def test_no_tokens_give_no_losses() -> None:
    for loss in (HiddenSquares(view="plain"), HiddenInformation(view="plain")):
        value, _ = loss.states(torch.zeros(0, 3), batch_of([0]), {"plain": torch.zeros(0, 3)})
        assert value.shape == (0,)
