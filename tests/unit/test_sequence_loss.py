"""Losses across tokens: hand-computed values, and what must not turn into NaN."""

from __future__ import annotations

import math

import pytest
import torch

from opd.config import build
from opd.errors import RecipeError
from opd.objective.loss import SampledReverseKL
from opd.objective.sequence_loss import (
    Preference,
    ReturnToGo,
    SequencePolicyGradient,
    SuccessClassifier,
    accumulated,
    sequence_means,
    sequence_sums,
)
from opd.recipe import Recipe
from tests.batches import batch_of, seen_of
from tests.runs import tree


def test_sums_and_means_of_sequences_one_of_which_is_empty() -> None:
    tokens = batch_of([2, 0, 1])
    values = torch.tensor([1.0, 3.0, 5.0])
    assert sequence_sums(values, tokens).tolist() == [4.0, 0.0, 5.0]
    assert sequence_means(values, tokens).tolist() == [2.0, 0.0, 5.0]


def test_a_huge_sequence_ratio_stays_finite() -> None:
    logprob = torch.tensor([0.0, 0.0], requires_grad=True)
    tokens = batch_of([2], advantage=[-1.0], sampled_logprob=torch.tensor([-500.0, -500.0]))
    loss, _ = SequencePolicyGradient().sequences(logprob, tokens, {})
    assert loss.tolist() == pytest.approx([math.exp(20)] * 2, rel=1e-5)


def test_a_sequence_ratio_needs_sampled_rollouts(tmp_path) -> None:
    terms = {"reinforce": {"loss": "SequencePolicyGradient"}}
    changes = {"terms": terms, "source": "Demonstrations"}
    with pytest.raises(RecipeError, match="needs sampled rollouts"):
        build(Recipe, tree(tmp_path, tmp_path, **changes))


@pytest.mark.parametrize("backward", [False, True])
def test_accumulated_along_each_sequence(backward: bool) -> None:
    tokens = batch_of([3, 0, 2])
    added = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    rate = torch.tensor([0.5, 0.1, 9.0, 0.2, 9.0])
    found = accumulated(added, rate, tokens, backward=backward)
    expected = [1 + 0.5 * 2.3, 2.3, 3.0, 5.0, 5.0] if backward else [1.0, 2.5, 3.25, 4.0, 5.8]
    assert found.tolist() == pytest.approx(expected)
    nothing = torch.zeros(0)
    assert accumulated(nothing, nothing, batch_of([0]), backward=backward).shape == (0,)


def test_returns_without_a_future_are_the_sampled_reverse_kl() -> None:
    """The gradient of the first update, whose ratio is 1."""
    logprob = torch.tensor([-1.0, -0.5, -2.0], requires_grad=True)
    tokens = batch_of([2, 1], sampled_logprob=logprob.detach())
    seen = {"solution": seen_of([-0.2, -1.5, -2.5])}
    immediate = ReturnToGo(view="solution", discount=0.0, whiten=False, reward_scale=1.0)
    own, _ = immediate.sequences(logprob, tokens, seen)
    sampled, _ = SampledReverseKL(view="solution").tokens(logprob, tokens, seen)
    gradients = [torch.autograd.grad(loss.sum(), logprob)[0] for loss in (own, sampled)]
    torch.testing.assert_close(*gradients)


def test_whitened_returns_have_mean_0_and_deviation_1_over_the_update() -> None:
    tokens = batch_of([2, 3])
    loss = ReturnToGo(view="solution", largest_reward=2.0)
    teacher = torch.tensor([-1.0, -90.0, -0.3, -0.1, -2.0])
    found = loss.returns(torch.full((5,), -1.0), tokens, teacher)
    assert found.mean().item() == pytest.approx(0, abs=1e-6)
    assert found.std().item() == pytest.approx(1, abs=1e-6)
    raw = ReturnToGo(view="solution", largest_reward=2.0, whiten=False, discount=0.0)
    assert raw.returns(torch.full((5,), -1.0), tokens, teacher)[1].item() == -2.0
    alone = loss.returns(torch.tensor([-1.0]), batch_of([1]), torch.tensor([-0.5]))
    assert bool(alone.isfinite().all())


def preference(
    gains: list[float], group: list[int], **keys: object
) -> tuple[list[float], list[bool]]:
    """Losses and counts of one-token responses whose log ratios are `gains`."""
    tokens = batch_of([1] * len(gains), group=group)
    seen = {"plain": seen_of([0.0] * len(gains))}
    loss = Preference(view="plain", **keys)  # pyright: ignore
    values, _ = loss.sequences(torch.tensor(gains), tokens, seen)
    return values.tolist(), loss.counts(tokens, seen).tolist()


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_the_first_of_a_problem_is_preferred_to_each_other() -> None:
    losses, counts = preference([1.0, 5.0, 0.0, 2.0], [0, 1, 0, 0], beta=1.0)
    pairs = softplus(-1.0), softplus(1.0)
    assert losses == pytest.approx([sum(pairs) / 2, 0.0, *pairs])
    assert counts == [True, False, True, True]


def test_a_preferred_response_that_lost_its_tokens_leaves_its_place() -> None:
    tokens = batch_of([0, 1, 1], group=[0, 0, 0])
    seen = {"plain": seen_of([0.0, 0.0])}
    losses, _ = Preference(view="plain", beta=1.0).sequences(torch.tensor([1.0, 0.0]), tokens, seen)
    assert losses.tolist() == pytest.approx([softplus(-1.0)] * 2)
    alone = batch_of([0, 1], group=[0, 0])
    assert Preference(view="plain").counts(alone, seen).tolist() == [False]


def test_a_preference_per_token_divides_by_the_length() -> None:
    tokens = batch_of([2, 1], group=[0, 0])
    seen = {"plain": seen_of([0.0] * 3)}
    values = torch.tensor([1.0, 3.0, 0.5])
    losses, _ = Preference(view="plain", beta=1.0, per_token=True).sequences(values, tokens, seen)
    assert losses.tolist() == pytest.approx([softplus(-1.5)] * 3)


def test_a_missing_class_adds_nothing() -> None:
    seen = {"plain": seen_of([0.0, 0.0])}
    values = torch.tensor([1.0, 3.0], requires_grad=True)
    for success in (True, False):
        tokens = batch_of([1, 1], success=[success, success])
        loss, _ = SuccessClassifier(view="plain").sequences(values, tokens, seen)
        (gradient,) = torch.autograd.grad(loss.mean(), values)
        assert bool(loss.isfinite().all()) and bool((gradient < 0).all()) == success


def test_an_empty_response_has_no_say_in_the_middle() -> None:
    values = torch.tensor([4.0, -2.0, 0.0])
    seen = {"plain": seen_of([0.0] * 3)}
    loss = SuccessClassifier(view="plain")
    three = batch_of([1, 1, 1], success=[True, False, False])
    four = batch_of([1, 1, 0, 1], success=[True, False, True, False])
    alone, _ = loss.sequences(values, three, seen)
    beside, _ = loss.sequences(values, four, seen)
    assert alone.tolist() == beside.tolist()
