"""Returns of arXiv 2306.08543, and what is left of them without a future."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.divergence import ReverseKL
from opd.objective.loss import Distill, SampledReverseKL
from opd.objective.sequence_loss import ReturnToGo
from opd.objective.term import Term
from tests.batches import batch_of, seen_of
from tests.rows import A_STUDENT, A_TEACHER, pulled
from tests.students import distance, drawn_by, recipe_terms, update_of

REWARDS = (0.5, -0.2, 0.3)


def recipe_loss(**changes: object) -> ReturnToGo:
    loss = recipe_terms("minillm")["rest_of_the_response"].loss
    assert isinstance(loss, ReturnToGo)
    return replace(loss, **changes)


@pytest.mark.parametrize(
    ("per_token", "expected"), [(False, (0.6, 0.1, 0.3)), (True, (0.2, 0.05, 0.3))]
)
def test_returns_include_the_tokens_own_reward(
    per_token: bool, expected: tuple[float, ...]
) -> None:
    loss = recipe_loss(whiten=False, per_token=per_token, reward_scale=1.0)
    found = loss.returns(torch.zeros(3), batch_of([3]), torch.tensor(REWARDS))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    halved = recipe_loss(whiten=False, per_token=per_token)
    assert halved.reward_scale == 0.5
    doubled = halved.returns(torch.zeros(3), batch_of([3]), torch.tensor(REWARDS))
    assert doubled.tolist() == pytest.approx([2 * value for value in expected], abs=1e-6)


def test_a_discounted_return_is_divided_by_what_is_left_of_the_discounts() -> None:
    loss = recipe_loss(whiten=False, reward_scale=1.0, discount=0.5)
    found = loss.returns(torch.zeros(3), batch_of([3]), torch.tensor((0.2, -1.1, 0.5)))
    assert found.tolist() == pytest.approx([-0.225 / 1.75, -0.85 / 1.5, 0.5], abs=1e-6)


def test_a_token_answers_for_a_discounted_rest() -> None:
    """arXiv 2607.28582 counts log s - log q of the tokens from each on, which is minus a return."""
    loss = recipe_loss(whiten=False, per_token=False, reward_scale=1.0, discount=0.99)
    excess = torch.tensor((0.3, -0.1, 0.2))
    found = loss.returns(excess, batch_of([3]), torch.zeros(3))
    assert found.tolist() == pytest.approx([-0.39702, -0.098, -0.2], abs=1e-6)


def test_the_ratio_is_clipped_as_in_proximal_updates() -> None:
    logprob = torch.tensor([-1.0], requires_grad=True)
    batch = batch_of([1], sampled_logprob=torch.tensor([-1.0 - 0.5]))
    up = recipe_loss(whiten=False, reward_scale=1.0)
    loss, observed = up.sequences(logprob, batch, {"plain": seen_of([0.0])})
    assert loss.item() == pytest.approx(-1.2) and observed["clipped"].item() == 1
    down, _ = up.sequences(logprob, batch, {"plain": seen_of([-2.0])})
    assert down.item() == pytest.approx(torch.tensor(0.5).exp().item(), abs=1e-6)


def test_without_a_future_it_is_the_sampled_reverse_kl(tiny_model_dir: Path) -> None:
    """On tokens that the student has just drawn, so that the ratio is 1."""
    immediate = recipe_loss(
        view="solution", discount=0.0, whiten=False, reward_scale=1.0, clip_low=1.0, clip_high=1e9
    )
    sampled = SampledReverseKL(view="solution")
    trajectories = drawn_by(tiny_model_dir)
    found = [
        update_of(tiny_model_dir, {"term": Term(loss=loss)}, trajectories)[1]
        for loss in (immediate, sampled)
    ]
    assert distance(*found) < 1e-4


def test_the_single_step_is_exact_reverse_kl() -> None:
    """Its gradient is s (log s - log q - KL)."""
    loss = recipe_terms("minillm")["single_step"].loss
    assert isinstance(loss, Distill) and isinstance(loss.divergence, ReverseKL)
    value, pull, _ = pulled(loss, A_STUDENT, plain=A_TEACHER)
    assert value == pytest.approx(0.1166225, abs=1e-6)
    assert pull == pytest.approx((-0.226547, 0.026630, 0.199917), abs=1e-6)
