"""Numbers of arXiv 2507.18071's ratio, and what becomes of it where it says nothing."""

from __future__ import annotations

import math

import pytest
import torch

from opd.config import build, load_recipe
from opd.objective.loss import PolicyGradient
from opd.objective.sequence_loss import SequencePolicyGradient
from opd.recipe import Recipe
from tests.batches import batch_of

LOG_RATIOS = (0.2, -0.1, 0.3)


def loss_at(
    ratios: tuple[float, ...], advantage: float, low: float = 1.0, high: float = 9.0
) -> tuple[list[float], list[float], list[float]]:
    """Losses, gradients and clips of one response whose tokens have these log ratios."""
    logprob = torch.tensor([-1.0] * len(ratios), requires_grad=True)
    sampled = logprob.detach() - torch.tensor(ratios)
    batch = batch_of([len(ratios)], advantage=[advantage], sampled_logprob=sampled)
    loss, observed = SequencePolicyGradient(clip_low=low, clip_high=high).sequences(
        logprob, batch, {}
    )
    (gradient,) = torch.autograd.grad(loss.mean(), logprob)
    return loss.tolist(), gradient.tolist(), observed["clipped"].tolist()


def test_the_ratio_is_the_geometric_mean_of_the_tokens() -> None:
    loss, gradient, _ = loss_at(LOG_RATIOS, 1.0)
    assert loss == pytest.approx([-1.1426308] * 3, abs=1e-6)
    assert gradient == pytest.approx([-1.1426308 / 3] * 3, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "clipped"),
    [(1.5, 1, -1.0004, 1), (1.5, -1, 1.5, 0), (0.5, 1, -0.5, 0), (0.5, -1, 0.9997, 1)],
)
def test_the_clip_bounds_the_whole_response(
    ratio: float, advantage: float, value: float, clipped: float
) -> None:
    loss, gradient, share = loss_at((math.log(ratio),) * 2, advantage, 3e-4, 4e-4)
    assert loss == pytest.approx([value] * 2, abs=1e-6)
    assert share == [clipped] * 2
    expected = 0.0 if clipped else -ratio * advantage / 2
    assert gradient == pytest.approx([expected] * 2, abs=1e-6)


def test_one_token_is_the_ratio_of_a_token() -> None:
    """A response of one token, by the bounds of arXiv 2402.03300."""
    logprob = torch.tensor([-0.5, -0.7, -2.0], requires_grad=True)
    batch = batch_of(
        [1, 1, 1], advantage=[1.0, -1.0, 2.0], sampled_logprob=torch.tensor([-0.9, -0.4, -2.0])
    )
    token, _ = PolicyGradient(clip_low=0.2, clip_high=0.28).tokens(logprob, batch, {})
    whole, _ = SequencePolicyGradient(clip_low=0.2, clip_high=0.28).sequences(logprob, batch, {})
    torch.testing.assert_close(whole, token)
    gradients = [torch.autograd.grad(loss.sum(), logprob)[0] for loss in (whole, token)]
    torch.testing.assert_close(*gradients)


def test_the_recipe_has_the_papers_bounds_and_a_mean_over_responses() -> None:
    (term,) = build(Recipe, load_recipe("gspo")).terms.values()
    assert isinstance(term.loss, SequencePolicyGradient) and term.average == "sequence"
    assert (term.loss.clip_low, term.loss.clip_high) == (3e-4, 4e-4)
