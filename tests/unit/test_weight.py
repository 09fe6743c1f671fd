"""Which tokens count, and how much."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opd.objective.weight import (
    Agreement,
    Confidence,
    Differing,
    FirstTokens,
    MostUnsure,
    Only,
    PassRate,
    Position,
    Present,
    Rest,
    Weight,
)
from opd.types import Seen
from tests.batches import batch_of, scores_of
from tests.students import Rank

RATES = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("a", "b", "weights"),
    [
        (1.0, 1.0, (0.0, 0.1875, 0.25, 0.1875, 0.0)),
        (2.0, 1.0, (0.0, 0.046875, 0.125, 0.140625, 0.0)),
        (0.0, 0.0, (1.0, 1.0, 1.0, 1.0, 1.0)),
        (0.0, 1.0, (1.0, 0.75, 0.5, 0.25, 0.0)),
    ],
)
def test_pass_rate(a: float, b: float, weights: tuple[float, ...]) -> None:
    batch = batch_of([1] * 5, pass_rate=RATES)
    assert PassRate(a=a, b=b)(batch, {}).tolist() == pytest.approx(weights)


def test_pass_rate_weights_relative_to_their_mean() -> None:
    weights = PassRate()(batch_of([1] * 5, pass_rate=RATES), {})
    assert (weights / weights.mean()).tolist() == pytest.approx((0.0, 1.5, 2.0, 1.5, 0.0))


@given(rate=st.floats(0, 1), a=st.integers(0, 4), b=st.integers(0, 4))
def test_pass_rate_peaks_at_a_over_a_plus_b_and_mirrors(rate: float, a: float, b: float) -> None:
    def weight(p: float, a: float, b: float) -> float:
        return PassRate(a=a, b=b)(batch_of([1], pass_rate=[p]), {}).item()

    assert weight(rate, a, b) == pytest.approx(weight(1 - rate, b, a), abs=1e-5)
    if a + b > 0:
        assert weight(rate, a, b) <= weight(a / (a + b), a, b) + 1e-6


def test_pass_rate_with_two_to_one_exponents_peaks_at_two_thirds() -> None:
    weight = PassRate(a=2.0, b=1.0)(batch_of([1], pass_rate=[2 / 3]), {})
    assert weight.item() == pytest.approx(0.148148, abs=1e-6)


def test_weights_of_a_sequence_reach_each_of_its_tokens() -> None:
    batch = batch_of([2, 1], pass_rate=[0.5, 0.25], success=[True, False])
    assert PassRate()(batch, {}).tolist() == pytest.approx([0.25, 0.25, 0.1875])
    assert Only(when="success")(batch, {}).tolist() == [1, 1, 0]
    assert Only(when="failure")(batch, {}).tolist() == [0, 0, 1]
    gains = batch_of([2, 1, 1], advantage=[0.0, 0.1, -0.1])
    assert Only(when="gain")(gains, {}).tolist() == [0, 0, 1, 0]


def test_confidence_falls_with_the_teachers_entropy() -> None:
    """arXiv 2604.02288, before its division by the mean."""
    scores = {"solution": scores_of(3, entropy=[0.0, 0.5, 1.0])}
    weights = Confidence(view="solution")(batch_of([3]), scores)
    assert weights.tolist() == pytest.approx([1.0, 0.606531, 0.367879], abs=1e-6)
    assert (weights / weights.mean()).tolist() == pytest.approx([1.519441, 0.921588, 0.558971])
    assert Confidence(view="solution", scale=0.0)(batch_of([3]), scores).tolist() == [1, 1, 1]


def test_absent_teacher_has_no_confidence() -> None:
    scores = {"solution": scores_of(2, present=[True, False])}
    assert Confidence(view="solution")(batch_of([2]), scores).tolist() == [1, 0]


def test_presence_and_what_the_failures_that_have_a_teacher_leave() -> None:
    batch = batch_of([1, 2, 1], success=[True, False, False])
    scores = {"solution": scores_of(4, present=[True, True, True, False])}
    assert Present(view="solution")(batch, scores).tolist() == [1, 1, 1, 0]
    rest = Rest(of=(Only(when="failure"), Present(view="solution")))
    assert rest.views == ("solution",) and rest(batch, scores).tolist() == [1, 0, 0, 1]
    half = Rest(of=(Confidence(view="solution"), PassRate(a=0, b=1)))
    halves = half(batch_of([1, 3], pass_rate=[1.0, 0.5]), scores)
    assert halves.tolist() == [1, 0, 0, 1]


def test_tokens_on_which_views_differ() -> None:
    weight = Differing(view="right", against=("wrong", "other"), least=0.5)
    scores = {
        "right": scores_of(4, logprob=[-1.0] * 4, present=[True, True, True, False]),
        "wrong": scores_of(4, logprob=[-1.6, -0.4, -1.4, -9.0]),
        "other": scores_of(4, present=[False] * 4),
    }
    assert weight(batch_of([4]), scores).tolist() == [1, 1, 0, 0]
    scores["wrong"] = scores["other"]
    assert weight(batch_of([4]), scores).tolist() == [0, 0, 0, 0]


def test_the_rest_of_a_weight_over_the_update_is_refused() -> None:
    with pytest.raises(ValueError, match="whole update"):
        Rest(of=(Rank(),))


@pytest.mark.parametrize(
    ("skip", "keep", "weights"),
    [
        (0, None, [1, 1, 1, 1, 1, 1]),
        (3, None, [0, 0, 0, 1, 0, 0]),
        (0, 1, [1, 0, 0, 0, 1, 0]),
        (1, 3, [0, 1, 1, 0, 0, 1]),
        (9, None, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_first_tokens_count_from_the_start_of_each_response(
    skip: int, keep: int | None, weights: list[float]
) -> None:
    assert FirstTokens(skip=skip, keep=keep)(batch_of([4, 2]), {}).tolist() == weights


@pytest.mark.parametrize(
    "weight",
    [
        PassRate(),
        Only(when="success"),
        Confidence(view="solution"),
        FirstTokens(skip=1),
        Present(view="solution"),
        Rest(of=(Present(view="solution"),)),
        Differing(view="solution", against=("solution",), least=0.1),
    ],
    ids=repr,
)
def test_weights_are_detached_finite_and_of_the_right_shape(weight: Weight) -> None:
    for lengths in ([3, 2], []):
        tokens = sum(lengths)
        batch = batch_of(lengths, pass_rate=[1.0] * len(lengths))
        values = weight(batch, {"solution": scores_of(tokens, entropy=[90.0] * tokens)})
        assert values.shape == (tokens,) and values.dtype == torch.float32
        assert not values.requires_grad and bool(values.isfinite().all())


def test_weights_name_the_views_that_they_read() -> None:
    assert Confidence(view="solution").views == ("solution",)
    assert PassRate().views == ()


def test_position_is_a_share_of_the_responses_own_length() -> None:
    """Numbers of arXiv 2605.21606's moderate setting."""
    found = Position()(batch_of([10, 1]), {})
    assert found[:3].tolist() == pytest.approx([0.306893635, 0.386819143, 0.533155502], abs=1e-6)
    assert found[9].item() == pytest.approx(0.998874113, abs=1e-6)
    assert found[:10].mean().item() == pytest.approx(0.771559713, abs=1e-6)
    assert found[10].item() == pytest.approx(0.25 + 0.75 / (1 + math.exp(-2)), abs=1e-6)


def views_of(table: Sequence[Sequence[float]], present: Tensor | None = None) -> dict[str, Seen]:
    here = torch.ones(len(table), len(table[0]), dtype=torch.bool) if present is None else present
    sides = zip(torch.tensor(table), here, strict=True)
    return {f"v{n}": Seen(row, torch.zeros_like(row), mask) for n, (row, mask) in enumerate(sides)}


def test_agreement_is_measured_by_its_quantile_in_the_update() -> None:
    seen = views_of([[-1, -2, -1], [-1.5, -2, -1], [-0.5, -2, -9]])
    found = Agreement(among=("v0", "v1", "v2"), quantile=0.5).over_update(batch_of([3]), seen)
    assert found.tolist() == pytest.approx([1 / 2, 1.0, 1 / (1 + 10)], abs=1e-6)


def test_a_token_that_fewer_than_two_views_see_keeps_its_weight() -> None:
    present = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])
    seen = views_of([[-1, -1, -1], [-9, -2, -1], [-9, -9, -4]], present)
    found = Agreement(among=("v0", "v1", "v2"), quantile=0.5).over_update(batch_of([3]), seen)
    assert found.tolist() == pytest.approx([1.0, 1 / (1 + 0.5 / 1.75), 1 / (1 + 3 / 1.75)])
    nobody = views_of([[-1.0], [-9.0]], torch.tensor([[True], [False]]))
    assert Agreement(among=("v0", "v1")).over_update(batch_of([1]), nobody).tolist() == [1.0]


def test_views_that_agree_everywhere_weigh_all_tokens_alike() -> None:
    seen = views_of([[-1.0, -2.0], [-1.0, -2.000001]])
    found = Agreement(among=("v0", "v1")).over_update(batch_of([2]), seen)
    assert found.tolist() == pytest.approx([1.0, 1.0], abs=1e-3)


def test_the_least_sure_share_of_an_update() -> None:
    entropy = [0.1, 0.5, 0.3, 0.9, 0.7, 0.2]
    present = torch.tensor([True, True, True, False, True, True])
    seen = {"itself": Seen(torch.zeros(6), torch.tensor(entropy), present)}

    def kept(share: float) -> list[float]:
        return MostUnsure(view="itself", share=share).over_update(batch_of([6]), seen).tolist()

    assert kept(0.2) == [0, 0, 0, 0, 1, 0]
    assert kept(0.21) == kept(0.4) == [0, 1, 0, 0, 1, 0]
    assert kept(1.0) == [1, 1, 1, 0, 1, 1]
    many = Seen(torch.zeros(100), torch.arange(100.0), torch.ones(100, dtype=torch.bool))
    most = MostUnsure(view="itself", share=0.55).over_update(batch_of([100]), {"itself": many})
    assert most.sum().item() == 55 and most[-55:].all()
    nobody = Seen(torch.zeros(2), torch.zeros(2), torch.zeros(2, dtype=torch.bool))
    assert MostUnsure(view="v").over_update(batch_of([2]), {"v": nobody}).tolist() == [0, 0]
