"""Divergences against hand-computed numbers, and what holds for any two distributions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from opd.objective.divergence import (
    JSD,
    Blend,
    CrossEntropy,
    Divergence,
    EntropyAware,
    Entrywise,
    ForwardKL,
    HeadTail,
    HeldSkewReverseKL,
    MixedKL,
    Renyi,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)

D0 = (0.4, 0.4, 0.2), (0.7, 0.2, 0.1)
FIXTURE_A = (0.5, 0.25, 0.25), (0.7, 0.2, 0.1)
FIXTURE_B = (0.4, 0.2, 0.2, 0.2), (0.5, 0.3, 0.15, 0.05)
FIVE = (0.5, 0.3, 0.1, 0.06, 0.04), (0.2, 0.3, 0.4, 0.06, 0.04)
COIN = (0.5, 0.5), (0.8, 0.2)
EVERY = (
    ForwardKL(),
    ReverseKL(),
    JSD(),
    JSD(teacher_weight=0.1),
    SkewKL(),
    SkewReverseKL(),
    HeldSkewReverseKL(),
    TotalVariation(),
    Renyi(),
)


def logs(*rows: tuple[float, ...]) -> tuple[Tensor, ...]:
    """Log-probs `[1, V]` of each row of probabilities."""
    return tuple(torch.tensor([row]).log() for row in rows)


def logit_gradient(divergence: Divergence, student: Tensor, target: Tensor) -> Tensor:
    logits = student.detach().clone().requires_grad_()
    divergence(logits.log_softmax(-1), target).sum().backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize(
    ("divergence", "pair", "nats"),
    [
        (ForwardKL(), D0, 0.183786897),
        (ReverseKL(), D0, 0.192041993),
        (JSD(), D0, 0.046200829),
        (ForwardKL(), FIXTURE_A, 0.0992728),
        (ReverseKL(), FIXTURE_A, 0.1166225),
        (JSD(teacher_weight=0.1), FIXTURE_A, 0.0090229),
        (JSD(teacher_weight=0.5), FIXTURE_A, 0.0263677),
        (JSD(teacher_weight=0.9), FIXTURE_A, 0.0102392),
        (SkewKL(skew=0.1), FIXTURE_A, 0.0820464),
        (SkewReverseKL(skew=0.1), FIXTURE_A, 0.0900026),
        (TotalVariation(), FIXTURE_A, 0.2),
        (ForwardKL(), FIXTURE_B, 0.1207443),
        (ReverseKL(), FIXTURE_B, 0.1644448),
        (ForwardKL(), FIVE, 0.371259598),
        (ReverseKL(), FIVE, 0.319515930),
        (JSD(), FIVE, 0.081393347),
        (ForwardKL(), COIN, 0.192744757),
        (ReverseKL(), COIN, 0.223143551),
    ],
)
def test_value(divergence: Divergence, pair: tuple[tuple[float, ...], ...], nats: float) -> None:
    assert divergence(*logs(*pair)).item() == pytest.approx(nats, abs=1e-6)


@pytest.mark.parametrize(
    ("divergence", "pair", "gradient"),
    [
        (ForwardKL(), D0, (-0.3, 0.2, 0.1)),
        (ReverseKL(), D0, (-0.30066311, 0.20044207, 0.10022104)),
        (JSD(), D0, (-0.0727363, 0.04849086, 0.02424543)),
        (ForwardKL(), FIXTURE_A, (-0.2, 0.05, 0.15)),
        (ReverseKL(), FIXTURE_A, (-0.226547, 0.026630, 0.199917)),
        (SkewReverseKL(skew=0.1), FIXTURE_A, (-0.174708, 0.027024, 0.147684)),
        # s log(s / m) less s times its sum, m = (.68, .205, .115).
        (HeldSkewReverseKL(skew=0.1), FIXTURE_A, (-0.198744, 0.027112, 0.171632)),
    ],
)
def test_gradient_in_the_logits(
    divergence: Divergence, pair: tuple[tuple[float, ...], ...], gradient: tuple[float, ...]
) -> None:
    assert logit_gradient(divergence, *logs(*pair))[0].tolist() == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize(
    "divergence",
    [each for each in EVERY if not isinstance(each, HeldSkewReverseKL)]
    + [MixedKL(share=0.3), EntropyAware(above=1.2)],
    ids=repr,
)
def test_gradient_agrees_with_finite_differences(divergence: Divergence) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, dtype=torch.float64, generator=generator).requires_grad_()
    target = torch.randn(3, 5, dtype=torch.float64, generator=generator).log_softmax(-1)
    assert torch.autograd.gradcheck(lambda x: divergence(x.log_softmax(-1), target), logits)


@pytest.mark.parametrize("blend", [MixedKL(), EntropyAware(above=0.5), Entrywise(), HeadTail()])
def test_a_blend_keeps_its_entries_above_zero_and_excludes_what_both_do(blend: Blend) -> None:
    student = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.1, 0.8, 0.1, 0.0]], dtype=torch.float64)
    target = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.9, 0.05, 0.05, 0.0]], dtype=torch.float64)
    entries = blend.nonnegative_entries(student.log(), target.log())
    assert (entries >= -1e-12).all() and entries[:, 3].abs().max() == 0
    value = blend(student.log(), target.log())
    assert torch.allclose(entries.sum(-1), value)
    ends = [each(student.log(), target.log()) for each in (ForwardKL(), ReverseKL())]
    if not isinstance(blend, EntropyAware | Entrywise):
        assert (value >= torch.minimum(*ends) - 1e-12).all()
        assert (value <= torch.maximum(*ends) + 1e-12).all()


def test_a_blend_with_nothing_of_a_side_may_be_infinite_there() -> None:
    """The student excludes what the teacher says."""
    student = torch.tensor([[0.5, 0.5, 0.0]]).log().requires_grad_()
    value = EntropyAware(above=1e9)(student, torch.tensor([[0.4, 0.3, 0.3]]).log())
    (pull,) = torch.autograd.grad(value.sum(), student)
    assert torch.isfinite(value).all() and torch.isfinite(pull).all()


def test_cross_entropy_is_forward_kl_and_the_targets_entropy() -> None:
    student, target = (table.double() for table in logs(*D0))
    entropy = 0.801818553
    assert CrossEntropy()(student, target).item() == pytest.approx(0.183786897 + entropy, abs=1e-6)
    pull, want = (logit_gradient(each, student, target) for each in (CrossEntropy(), ForwardKL()))
    assert torch.allclose(pull, want)
    excluded = torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert CrossEntropy()(excluded, excluded).item() == pytest.approx(math.log(2))


def test_both_ends_of_jsd_are_the_two_kls_after_division_by_the_weight() -> None:
    student, target = (table.double() for table in logs(*D0))
    near_forward = JSD(teacher_weight=1e-3)(student, target) / 1e-3
    assert near_forward.item() == pytest.approx(0.183599413, abs=1e-6)
    near_reverse = JSD(teacher_weight=1 - 1e-6)(student, target) / 1e-6
    assert near_reverse.item() == pytest.approx(0.192041993, abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shares_at_the_ends_are_refused(share: float) -> None:
    with pytest.raises(ValidationError):
        JSD(teacher_weight=share)
    with pytest.raises(ValidationError):
        SkewKL(skew=share)


def test_forward_kl_to_many_teachers_keeps_their_mutual_information() -> None:
    """arXiv 2604.03128: the mean over teachers is the distance to their mean, plus a constant."""
    student, first, second, mean = logs((0.7, 0.3), (0.9, 0.1), (0.1, 0.9), (0.5, 0.5))
    kl = ForwardKL()
    average = (kl(student, first) + kl(student, second)) / 2
    assert average.item() == pytest.approx(0.455240901, abs=1e-6)
    gap = average - kl(student, mean)
    assert gap.item() == pytest.approx(0.368064207, abs=1e-6)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two tables of log-probs `[n, K]`."""
    shape = draw(st.integers(1, 3)), draw(st.integers(2, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = draw(st.floats(0.0, 8.0))
    student, target = torch.randn(2, *shape, generator=generator) * spread
    return student.log_softmax(-1), target.log_softmax(-1)


@pytest.mark.parametrize("divergence", EVERY, ids=repr)
@given(pair=pairs())
def test_zero_with_zero_gradient_at_equality(
    divergence: Divergence, pair: tuple[Tensor, Tensor]
) -> None:
    logits = pair[0].requires_grad_()
    value = divergence(logits.log_softmax(-1), logits.detach().log_softmax(-1))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.abs().max() < 1e-6
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("divergence", EVERY, ids=repr)
@given(pair=pairs())
def test_never_negative(divergence: Divergence, pair: tuple[Tensor, Tensor]) -> None:
    assert divergence(*pair).min() > -1e-6


@pytest.mark.parametrize("divergence", EVERY, ids=repr)
@given(pair=pairs())
def test_nonnegative_entries_have_the_same_sum(
    divergence: Divergence, pair: tuple[Tensor, Tensor]
) -> None:
    entries = divergence.nonnegative_entries(*pair)
    assert entries.min() > -1e-6
    torch.testing.assert_close(entries.sum(-1), divergence(*pair), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("divergence", EVERY, ids=repr)
@given(pair=pairs(), seed=st.integers(0, 2**31))
def test_order_of_the_vocabulary_is_irrelevant(
    divergence: Divergence, pair: tuple[Tensor, Tensor], seed: int
) -> None:
    student, target = pair
    order = torch.randperm(student.shape[-1], generator=torch.Generator().manual_seed(seed))
    moved = divergence(student[:, order], target[:, order])
    torch.testing.assert_close(moved, divergence(student, target), atol=1e-6, rtol=1e-5)


@given(pair=pairs())
def test_even_jsd_and_total_variation_are_symmetric_and_bounded(
    pair: tuple[Tensor, Tensor],
) -> None:
    student, target = pair
    for divergence, bound in ((JSD(), math.log(2)), (TotalVariation(), 1.0)):
        value = divergence(student, target)
        torch.testing.assert_close(value, divergence(target, student))
        assert value.max() <= bound + 1e-6


@given(pair=pairs())
def test_skews_lie_below_their_kls_and_below_a_bound(pair: tuple[Tensor, Tensor]) -> None:
    for full, skewed in ((ForwardKL(), SkewKL()), (ReverseKL(), SkewReverseKL())):
        bound = full(*pair).clamp(max=-math.log(skewed.skew))
        assert bool((skewed(*pair) <= bound + 1e-6).all())


def test_skews_without_skew_are_the_kls() -> None:
    student, target = (table.double() for table in logs(*D0))
    near = SkewKL(skew=1e-9)(student, target), SkewReverseKL(skew=1e-9)(student, target)
    assert [value.item() for value in near] == pytest.approx([0.183786897, 0.192041993], abs=1e-6)


@pytest.mark.parametrize("divergence", EVERY, ids=repr)
@pytest.mark.parametrize("nonnegative", [False, True])
@given(pair=pairs())
def test_entries_that_both_sides_exclude_change_nothing(
    divergence: Divergence, nonnegative: bool, pair: tuple[Tensor, Tensor]
) -> None:
    student, target = pair
    excluded = torch.full((student.shape[0], 2), -math.inf)
    logits = torch.cat([student, excluded], -1).requires_grad_()
    wide_target = torch.cat([target, excluded], -1)
    compare = divergence.nonnegative_entries if nonnegative else divergence.entries
    value = compare(logits.log_softmax(-1), wide_target).sum(-1)
    torch.testing.assert_close(value, compare(student, target).sum(-1), atol=1e-6, rtol=1e-5)
    value.sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert bool((logits.grad[:, -2:] == 0).all())


@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_entry_that_one_side_excludes(divergence: Divergence) -> None:
    wide, narrow = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.5, 0.5, 0.0]]).log()
    without_target, without_student = divergence(wide, narrow), divergence(narrow, wide)
    assert math.isinf(without_target.item()) == isinstance(divergence, ReverseKL)
    assert math.isinf(without_student.item()) == isinstance(divergence, ForwardKL)
    for other in (wide, narrow):
        assert bool(logit_gradient(divergence, wide, other).isfinite().all()) or isinstance(
            divergence, ReverseKL
        )
