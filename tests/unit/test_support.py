"""Supports against hand-computed numbers, and what holds for any two distributions."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opd.objective.divergence import (
    JSD,
    Divergence,
    ForwardKL,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)
from opd.objective.logits import Logits
from opd.objective.support import Full, Support, TopK

EVERY = (ForwardKL(), ReverseKL(), JSD(), SkewKL(), SkewReverseKL(), TotalVariation())
D0 = (0.4, 0.4, 0.2), (0.7, 0.2, 0.1)
FIXTURE_B = (0.4, 0.2, 0.2, 0.2), (0.5, 0.3, 0.15, 0.05)
FIVE = (0.5, 0.3, 0.1, 0.06, 0.04), (0.2, 0.3, 0.4, 0.06, 0.04)


def logs(*rows: tuple[float, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([row]).log() for row in rows)


def narrowed(support: Support, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What is compared of two tables `[n, V]` at temperature 1."""
    return support(Logits(student), Logits(target), 1.0)


@pytest.mark.parametrize(
    ("divergence", "pair", "support", "nats"),
    [
        (ForwardKL(), FIVE, TopK(size=2), 0.274887220),
        (ReverseKL(), FIVE, TopK(size=2), 0.274887220),
        (JSD(), FIVE, TopK(size=2), 0.066414314),
        (ForwardKL(), FIVE, TopK(size=2, rest="renormalise"), 0.103487336),
        (ReverseKL(), FIVE, TopK(size=2, rest="renormalise"), 0.102678078),
        (JSD(), FIVE, TopK(size=2, rest="renormalise"), 0.025547195),
        (ForwardKL(), FIXTURE_B, TopK(size=2, chosen_by="teacher"), 0.0945819),
        (ReverseKL(), FIXTURE_B, TopK(size=2, chosen_by="teacher"), 0.1069084),
        (
            ForwardKL(),
            FIXTURE_B,
            TopK(size=2, chosen_by="teacher", rest="renormalise"),
            0.0038321,
        ),
        (ForwardKL(), D0, TopK(size=2, chosen_by="teacher", rest="renormalise"), 0.163440982),
        (ReverseKL(), D0, TopK(size=2, chosen_by="teacher", rest="renormalise"), 0.184548732),
        (JSD(), D0, TopK(size=2, chosen_by="teacher", rest="renormalise"), 0.042628120),
    ],
)
def test_value(
    divergence: Divergence, pair: tuple[tuple[float, ...], ...], support: TopK, nats: float
) -> None:
    assert divergence(*narrowed(support, *logs(*pair))).item() == pytest.approx(nats, abs=1e-6)


@pytest.mark.parametrize("chosen_by", ["student", "teacher"])
def test_entries_are_those_of_the_side_that_chooses(
    chosen_by: Literal["student", "teacher"],
) -> None:
    support = TopK(size=1, chosen_by=chosen_by)
    student, target = (table.exp() for table in narrowed(support, *logs(*FIVE)))
    index = 0 if chosen_by == "student" else 2
    for row, full in ((student, FIVE[0]), (target, FIVE[1])):
        assert row[0].tolist() == pytest.approx([full[index], 1 - full[index]], abs=1e-6)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two tables of log-probs `[n, V]`."""
    shape = draw(st.integers(1, 3)), draw(st.integers(2, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    student, target = torch.randn(2, *shape, generator=generator) * draw(st.floats(0.0, 6.0))
    return student.log_softmax(-1), target.log_softmax(-1)


SUPPORTS = st.builds(
    TopK,
    size=st.integers(1, 9),
    chosen_by=st.sampled_from(["student", "teacher"]),
    rest=st.sampled_from(["tail", "renormalise"]),
)


@given(pair=pairs(), support=SUPPORTS)
def test_rows_sum_to_one(pair: tuple[Tensor, Tensor], support: TopK) -> None:
    for table in narrowed(support, *pair):
        torch.testing.assert_close(table.exp().sum(-1), torch.ones(len(table)))


@pytest.mark.parametrize("divergence", EVERY, ids=repr)
@given(pair=pairs(), size=st.integers(1, 9), chosen_by=st.sampled_from(["student", "teacher"]))
def test_a_tail_never_adds_divergence(
    divergence: Divergence,
    pair: tuple[Tensor, Tensor],
    size: int,
    chosen_by: Literal["student", "teacher"],
) -> None:
    student, target = (table.double().log_softmax(-1) for table in pair)
    some = divergence(*narrowed(TopK(size=size, chosen_by=chosen_by), student, target))
    assert bool((some <= divergence(student, target) + 1e-5).all())


@given(pair=pairs(), support=SUPPORTS)
def test_all_of_the_vocabulary_is_full(pair: tuple[Tensor, Tensor], support: TopK) -> None:
    whole = TopK(size=pair[0].shape[-1], chosen_by=support.chosen_by, rest=support.rest)
    for divergence in EVERY:
        assert torch.equal(
            divergence(*narrowed(whole, *pair)), divergence(*narrowed(Full(), *pair))
        )


@pytest.mark.parametrize("rest", ["tail", "renormalise"])
def test_gradient_stays_finite_when_one_token_holds_all_the_mass(
    rest: Literal["tail", "renormalise"],
) -> None:
    logits = torch.tensor([[60.0, 0.0, -5.0, -math.inf]], requires_grad=True)
    teacher = torch.tensor([[0.0, 3.0, 1.0, -math.inf]]).log_softmax(-1)
    for divergence in EVERY:
        for size in (1, 3):
            logits.grad = None
            support = TopK(size=size, rest=rest)
            value = divergence(*narrowed(support, logits, teacher)).sum()
            value.backward()
            assert bool(value.isfinite())
            assert logits.grad is not None and bool(logits.grad.isfinite().all())
