"""How a term turns losses of tokens into one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opd.objective.divergence import ForwardKL
from opd.objective.loss import Distill, Likelihood, PolicyGradient
from opd.objective.schedule import Constant
from opd.objective.term import Term
from opd.objective.token_credit import Gap
from opd.objective.weight import Confidence, FirstTokens, Only, PassRate
from opd.types import Batch, Scores
from tests.batches import batch_of, scores_of

Average = Literal["token", "sequence", "weighted_sequence", "budget"]
Denominator = Literal["weights", "count"]
DISTILL = Distill(target="solution", divergence=ForwardKL())


def value(
    term: Term,
    losses: Sequence[float] | Tensor,
    batch: Batch,
    scores: Mapping[str, Scores] | None = None,
    max_response_tokens: int = 8,
) -> Tensor:
    weight = term.weight(batch, scores or {})
    numerator = term.numerator(torch.as_tensor(losses), weight, batch, max_response_tokens)
    return numerator / term.mass(weight, batch, max_response_tokens).clamp(min=1e-9)


@pytest.mark.parametrize(
    ("average", "mean"),
    [("token", 0.40), ("sequence", 0.35), ("weighted_sequence", 0.35), ("budget", 0.15)],
)
@pytest.mark.parametrize("denominator", ["weights", "count"])
def test_averages(average: Average, denominator: Denominator, mean: float) -> None:
    term = Term(loss=Likelihood(), average=average, denominator=denominator)
    assert value(term, [0.1, 0.3] + [0.5] * 4, batch_of([2, 4])).item() == pytest.approx(mean)


@pytest.mark.parametrize(("average", "mean"), [("sequence", 0.75), ("token", 0.6), ("budget", 0.3)])
def test_averages_of_a_long_and_a_short_response(average: Average, mean: float) -> None:
    term = Term(loss=Likelihood(), average=average)
    losses = [1.0] * 2 + [0.5] * 8
    found = value(term, losses, batch_of([2, 8]), max_response_tokens=10)
    assert found.item() == pytest.approx(mean)


@pytest.mark.parametrize(("average", "mean"), [("sequence", 0.45), ("token", 0.40)])
def test_skipped_tokens_leave_the_mean_of_their_sequence(average: Average, mean: float) -> None:
    """arXiv 2601.19897."""
    term = Term(loss=Likelihood(), weights=(FirstTokens(skip=3),), average=average)
    losses = [9.0, 9.0, 9.0, 0.4, 0.2, 9.0, 9.0, 9.0, 0.6]
    assert value(term, losses, batch_of([5, 4])).item() == pytest.approx(mean)


@pytest.mark.parametrize(("average", "count"), [("token", 4), ("sequence", 2), ("budget", 2)])
def test_a_pool_counts_what_the_average_is_over(average: Average, count: int) -> None:
    term = Term(loss=Likelihood(), weights=(FirstTokens(skip=1),), average=average)
    batch = batch_of([2, 4, 1])
    assert term.count(term.weight(batch, {}), batch).item() == count


def test_a_loss_that_needs_no_view_counts_where_it_is_absent() -> None:
    loss = PolicyGradient(token_credit=(Gap(view="solution"),))
    scores = {"solution": scores_of(2, present=[True, False])}
    term = Term(loss=loss)
    assert term.views == ("solution",)
    assert term.weight(batch_of([2]), scores).tolist() == [1, 1]


@pytest.mark.parametrize("average", ["token", "sequence", "weighted_sequence", "budget"])
def test_responses_shorter_than_the_skip_count_nowhere(average: Average) -> None:
    term = Term(loss=Likelihood(), weights=(FirstTokens(skip=3),), average=average)
    alone = value(term, [9.0, 9.0, 9.0, 0.4], batch_of([4]))
    both = value(term, [9.0, 9.0, 9.0, 0.4, 9.0, 9.0], batch_of([4, 2]))
    assert both.item() == pytest.approx(alone.item())


def test_pass_rates_weight_problems() -> None:
    """arXiv 2603.11178: the weighted mean, and the sums behind the unnormalised one."""
    batch = batch_of([1] * 5, pass_rate=[0.0, 0.25, 0.5, 0.75, 1.0])
    losses = torch.tensor([0.4, 0.8, 1.2, 0.6, 0.1])
    term = Term(loss=Likelihood(), weights=(PassRate(),))
    assert value(term, losses, batch).item() == pytest.approx(0.9)
    weight = term.weight(batch, {})
    assert term.numerator(losses, weight, batch, 8).item() / 5 == pytest.approx(0.1125)
    counted = Term(loss=Likelihood(), weights=(PassRate(),), denominator="count")
    assert counted.mass(weight, batch, 8).item() == 3


def test_weighted_mean_equals_weights_of_mean_one() -> None:
    """arXiv 2604.02288 divides its weights by their mean; a weighted mean does so by itself."""
    scores = {"solution": scores_of(3, entropy=[0.0, 0.5, 1.0])}
    term = Term(loss=DISTILL, weights=(Confidence(view="solution"),))
    found = value(term, [0.3, 0.2, 0.1], batch_of([3]), scores)
    assert found.item() == pytest.approx((0.455832 + 0.184318 + 0.055897) / 3, abs=1e-6)


def test_weights_multiply_and_absent_views_count_nothing() -> None:
    batch = batch_of([2, 2], pass_rate=[0.5, 0.25], success=[True, True])
    scores = {
        "solution": scores_of(4, present=[True, True, True, False]),
        "plain": scores_of(4, present=[False] * 4),
    }
    weights = (PassRate(), Only(when="success"), FirstTokens(skip=1))
    assert Term(loss=DISTILL, weights=weights).weight(batch, scores).tolist() == [0, 0.25, 0, 0]
    assert Term(loss=DISTILL).weight(batch, scores).tolist() == [1, 1, 1, 0]
    assert Term(loss=Likelihood()).weight(batch, scores).tolist() == [1, 1, 1, 1]


def test_a_term_names_each_view_once() -> None:
    weights = (Confidence(view="plain"), Confidence(view="solution"))
    assert Term(loss=DISTILL, weights=weights).views == ("solution", "plain")
    assert Term(loss=Likelihood()).coefficient == Constant(value=1.0)


@pytest.mark.parametrize("average", ["token", "sequence", "weighted_sequence", "budget"])
def test_tokens_of_weight_zero_get_no_gradient_even_when_their_loss_is_infinite(
    average: Average,
) -> None:
    losses = torch.tensor([torch.inf, 0.5, torch.nan, 0.25], requires_grad=True)
    term = Term(loss=Likelihood(), weights=(FirstTokens(skip=1),), average=average)
    total = value(term, losses, batch_of([2, 2]))
    total.backward()
    assert bool(total.isfinite()) and losses.grad is not None
    assert bool((losses.grad[[0, 2]] == 0).all()) and bool((losses.grad[[1, 3]] > 0).all())


@pytest.mark.parametrize("average", ["token", "sequence", "weighted_sequence", "budget"])
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_tokens_give_a_zero_with_a_gradient(average: Average, lengths: list[int]) -> None:
    losses = torch.zeros(0, requires_grad=True)
    term, batch = Term(loss=Likelihood(), average=average), batch_of(lengths)
    weight = term.weight(batch, {})
    numerator = term.numerator(losses, weight, batch, 8)
    numerator.backward()
    assert numerator.item() == 0 and term.mass(weight, batch, 8).item() == 0
    assert losses.grad is not None


@pytest.mark.parametrize("average", ["token", "sequence", "weighted_sequence", "budget"])
@pytest.mark.parametrize("denominator", ["weights", "count"])
@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    cut=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_splitting_a_batch_changes_neither_loss_nor_gradient(
    average: Average, denominator: Denominator, lengths: list[int], cut: int, seed: int
) -> None:
    cut = min(cut, len(lengths) - 1)
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(sum(lengths), generator=generator).requires_grad_()
    rates = torch.rand(len(lengths), generator=generator).tolist()
    weights = (PassRate(), FirstTokens(skip=1))
    term = Term(loss=Likelihood(), weights=weights, average=average, denominator=denominator)
    whole = value(term, losses, batch_of(lengths, pass_rate=rates))
    (expected,) = torch.autograd.grad(whole, losses)

    first = sum(lengths[:cut])
    pieces = (
        (losses[:first], batch_of(lengths[:cut], pass_rate=rates[:cut])),
        (losses[first:], batch_of(lengths[cut:], pass_rate=rates[cut:])),
    )
    weighed = [(part, term.weight(batch, {}), batch) for part, batch in pieces]
    mass = torch.stack([term.mass(weight, batch, 8) for _, weight, batch in weighed]).sum()
    numerators = [term.numerator(part, weight, batch, 8) for part, weight, batch in weighed]
    split = torch.stack(numerators).sum() / mass.clamp(min=1e-9)
    (gradient,) = torch.autograd.grad(split, losses)
    torch.testing.assert_close(split, whole)
    torch.testing.assert_close(gradient, expected)


def test_two_terms_on_disjoint_responses_have_the_gradients_of_two_runs() -> None:
    losses = torch.tensor([0.1, 0.4, 0.7], requires_grad=True)
    batch = batch_of([2, 1], success=[True, False])
    terms = [Term(loss=Likelihood(), weights=(Only(when=w),)) for w in ("success", "failure")]
    (joint,) = torch.autograd.grad([value(term, losses, batch) for term in terms], losses)
    assert joint.tolist() == pytest.approx([0.5, 0.5, 1.0])
