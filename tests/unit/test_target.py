"""Targets made of several sides, against the papers' numbers and by what must hold of any."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opd.objective.divergence import ForwardKL
from opd.objective.logits import Logits
from opd.objective.schedule import Constant
from opd.objective.target import (
    AlignedMean,
    ArithmeticMean,
    Contrasted,
    EntropyLifted,
    GeometricMean,
    Interpolated,
    Mixed,
    Sheltered,
    Shifted,
    Target,
    Tempered,
    Yielding,
)

S, Q = (0.4, 0.4, 0.2), (0.7, 0.2, 0.1)
VIEWS = ("a", "b", "c")


def logs(*probs: float) -> Tensor:
    return torch.tensor([probs], dtype=torch.float64).log()


def made(target: Target, student: Tensor, **teachers: Tensor) -> Tensor:
    return target(student, teachers, torch.zeros(len(student), dtype=torch.long))[0]


def probs(target: Target, student: Tensor, **teachers: Tensor) -> list[float]:
    return made(target, student, **teachers).softmax(-1)[0].tolist()


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.5, (0.555005568, 0.296662955, 0.148331477)),
        (0.8, (0.644911322, 0.236725785, 0.118362893)),
    ],
)
def test_part_of_the_way_from_a_view_is_the_papers(share: float, expected: tuple[float, ...]):
    anchored = Interpolated(view="q", share=Constant(value=share), start="initial")
    found = probs(anchored, logs(0.1, 0.1, 0.8), q=logs(*Q), initial=logs(*S))
    assert found == pytest.approx(expected, abs=1e-9)
    if share == 0.5:
        distance = ForwardKL()(logs(*S), torch.tensor([found], dtype=torch.float64).log())
        assert distance.item() == pytest.approx(0.048777326, abs=1e-9)


def test_part_of_the_way_from_the_student_is_the_papers():
    student = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64).log_softmax(-1)
    teacher = torch.tensor([[0.0, 2.0, 0.0]], dtype=torch.float64).log_softmax(-1)
    found = probs(Interpolated(view="q", share=Constant(value=0.4)), student, q=teacher)
    assert found == pytest.approx((0.396417, 0.484185, 0.119398), abs=1e-6)


@pytest.mark.parametrize(
    ("student", "said", "advantage"),
    [
        (0.2, (0.4, 0.3, 0.5), 0.692479),
        (0.3, (0.6, 0.3, 0.1), -0.115574),
        (0.3, (0.1, 0.12, 0.6), -0.345765),
    ],
)
def test_an_aligned_mean_moves_an_entry_as_the_paper_does(
    student: float, said: tuple[float, ...], advantage: float
):
    sides = {view: logs(p, 1 - p) for view, p in zip(VIEWS, said, strict=True)}
    own = logs(student, 1 - student)
    target = made(AlignedMean(views=VIEWS), own, **sides)
    assert (target - own)[0, 0].item() == pytest.approx(advantage, abs=2e-6)


rows = st.lists(st.floats(-6, 6), min_size=5, max_size=5).map(
    lambda values: torch.tensor([values], dtype=torch.float64).log_softmax(-1)
)


@given(student=rows, a=rows, b=rows, c=rows)
def test_the_excess_never_turns_the_agreed_direction_round(
    student: Tensor, a: Tensor, b: Tensor, c: Tensor
):
    sides = {"a": a, "b": b, "c": c}
    agreed = made(GeometricMean(views=VIEWS), student, **sides) - student
    aligned = made(AlignedMean(views=VIEWS), student, **sides) - student
    assert (aligned * agreed >= -1e-12).all()
    assert (aligned.abs() <= 2 * agreed.abs() + 1e-12).all()
    mirrored = made(AlignedMean(views=VIEWS[::-1]), student, **sides) - student
    assert torch.allclose(aligned, mirrored, atol=1e-12)


@given(student=rows, view=rows)
def test_views_that_say_the_same_are_what_they_say(student: Tensor, view: Tensor):
    for kind in (ArithmeticMean, GeometricMean, AlignedMean):
        target = made(kind(views=("a", "b")), student, a=view, b=view)
        assert torch.allclose(target.log_softmax(-1), view, atol=1e-9)


@given(student=rows, a=rows, b=rows)
def test_where_a_mean_lies(student: Tensor, a: Tensor, b: Tensor):
    mixed = made(ArithmeticMean(views=("a", "b")), student, a=a, b=b)
    assert torch.allclose(mixed.exp(), (a.exp() + b.exp()) / 2)
    assert (made(GeometricMean(views=("a", "b")), student, a=a, b=b) <= mixed + 1e-12).all()


def test_a_tempered_view_keeps_its_order_and_gets_sharper():
    found = probs(Tempered(view="q", temperature=Constant(value=0.5)), logs(*S), q=logs(*Q))
    squares = [q * q for q in Q]
    assert found == pytest.approx([square / sum(squares) for square in squares])


@pytest.mark.parametrize(
    "target",
    [
        Tempered(view="a", temperature=Constant(value=2.0)),
        Interpolated(view="a", share=Constant(value=0.3)),
        Interpolated(view="a", share=Constant(value=0.3), start="b"),
        ArithmeticMean(views=("a", "b")),
        GeometricMean(views=("a", "b")),
        AlignedMean(views=("a", "b")),
        Mixed(view="a", share=Constant(value=0.3)),
        Mixed(view="a", share=Constant(value=0.3), start="b"),
        Sheltered(view="a", anchor="b", above=Constant(value=0.0)),
        Yielding(view="a", anchor="b"),
        EntropyLifted(view="a"),
        Shifted(view="a", less="b", anchor="b"),
        Contrasted(view="a", against="b"),
    ],
)
def test_what_all_sides_exclude_stays_excluded(target: Target):
    side = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    found = made(target, side, a=side, b=side)
    one, other, nothing = found.softmax(-1)[0].tolist()
    # The taken token, the first, may be mixed in.
    assert nothing == 0.0 and one + other == pytest.approx(1.0) and one >= other > 0
    assert set(target.read) <= {"a", "b"}


@pytest.mark.parametrize(("share", "side"), [(0.0, (0.5, 0.5, 0.0)), (1.0, (0.5, 0.0, 0.5))])
def test_at_an_end_the_other_side_excludes_nothing(share: float, side: tuple[float, ...]):
    target = Interpolated(view="q", share=Constant(value=share))
    found = probs(target, logs(0.5, 0.5, 0.0), q=logs(0.5, 0.0, 0.5))
    assert found == pytest.approx(side)
    mixed = Mixed(view="q", start="a", share=Constant(value=share))
    sides = {"a": logs(0.5, 0.5, 0.0), "q": logs(0.5, 0.0, 0.5)}
    assert probs(mixed, logs(*S), **sides) == pytest.approx(side)


def test_a_target_is_of_the_losss_temperature():
    """At temperature 2 both sides are flattened first, and then one of them again."""
    target = Tempered(view="q", temperature=Constant(value=0.5))
    taken = torch.zeros(1, dtype=torch.long)
    found = target.logits(Logits(logs(*S)), {"q": Logits(logs(*Q))}, taken, 2.0)[0].log_probs(2.0)
    assert found.exp()[0].tolist() == pytest.approx(Q)
