"""Advantages of single tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opd.objective.loss import PolicyGradient
from opd.objective.schedule import Constant
from opd.objective.token_credit import (
    Gap,
    Magnitude,
    Repulsion,
    Residual,
    TokenCredit,
    mean_probability,
)
from opd.types import Seen
from tests.batches import batch_of, seen_of

HALF = Constant(value=0.5)
EVERY: tuple[TokenCredit, ...] = (
    Gap(view="solution"),
    Gap(view="solution", against=("plain", "wrong")),
    Magnitude(view="solution", share=HALF),
    Residual(view="solution"),
    Repulsion(view="solution", scale=HALF),
)


def shaped(
    part: TokenCredit, advantage: list[float], logprob: list[float], teacher: list[float]
) -> list[float]:
    """What `part` makes of advantages, where the teacher is present everywhere."""
    seen = {view: seen_of(teacher) for view in part.views}
    batch = batch_of([len(advantage)], sampled_logprob=torch.tensor(logprob))
    return part(torch.tensor(advantage), torch.tensor(logprob), batch, seen).tolist()


@pytest.mark.parametrize("part", EVERY, ids=repr)
def test_an_absent_teacher_leaves_the_advantage(part: TokenCredit) -> None:
    absent = Seen(torch.zeros(2), torch.zeros(2), torch.tensor([False, True]))
    here = Seen(torch.tensor([-3.0, -3.0]), torch.zeros(2), torch.tensor([True, True]))
    teachers = {**dict.fromkeys(part.views, here), "solution": absent}
    batch = batch_of([2], sampled_logprob=torch.full((2,), -1.0))
    found = part(torch.tensor([0.7, 0.7]), torch.tensor([-9.0, -9.0]), batch, teachers)
    assert found[0].item() == pytest.approx(0.7) and found[1].item() != pytest.approx(0.7)


def test_gap_adds_the_log_ratio_to_what_it_keeps() -> None:
    student, teacher = [math.log(0.5)], [math.log(0.2)]
    blend = Gap(view="solution", kept=0.9, scale=0.1)
    assert shaped(blend, [-0.5], student, teacher) == pytest.approx([-0.541629], abs=1e-6)
    assert shaped(Gap(view="solution", scale=0.0), [-0.5], student, teacher) == [-0.5]


def test_gap_to_the_policy_that_sampled() -> None:
    seen, batch = {"solution": seen_of([-0.5])}, batch_of([1], sampled_logprob=torch.tensor([-2.0]))
    trained, sampled = Gap(view="solution"), Gap(view="solution", student="sampled")
    for part, gap in ((trained, 0.5), (sampled, 1.5)):
        assert part(torch.zeros(1), torch.tensor([-1.0]), batch, seen).item() == pytest.approx(gap)


def test_a_gap_needs_one_of_the_views_that_it_is_set_against() -> None:
    part = Gap(view="solution", against=("plain", "wrong"))
    some, none = torch.tensor([True, False]), torch.tensor([False, False])
    seen = {
        "solution": seen_of([-1.0, -1.0]),
        "plain": Seen(torch.tensor([-3.0, 0.0]), torch.zeros(2), some),
        "wrong": Seen(torch.zeros(2), torch.zeros(2), none),
    }
    batch = batch_of([2])
    found = part(torch.tensor([0.5, 0.5]), torch.full((2,), -9.0), batch, seen)
    assert found.tolist() == pytest.approx([2.5, 0.5])


def test_mean_of_probabilities_and_not_of_their_logs() -> None:
    sides = [seen_of([math.log(0.4), -1.0]), seen_of([math.log(0.2), -1.0])]
    mean, known = mean_probability(sides)
    assert mean.tolist() == pytest.approx([math.log(0.3), -1.0]) and known.tolist() == [True, True]


def test_a_floor_bounds_what_a_gap_costs() -> None:
    part = Gap(view="solution", kept=0.0, floor=-2.0)
    assert shaped(part, [1.0, 1.0], [-1.0, -1.0], [-9.0, -0.5]) == pytest.approx([-2.0, 0.5])


@given(
    advantage=st.floats(-3, 3),
    gap=st.floats(-30, 30),
    share=st.floats(0, 1),
    bound=st.floats(0.01, 0.9),
)
def test_the_verifier_keeps_the_sign(
    advantage: float, gap: float, share: float, bound: float
) -> None:
    size = Magnitude(view="solution", share=Constant(value=share), bound=bound)
    for part in (size, Residual(view="solution")):
        (found,) = shaped(part, [advantage], [0.0], [gap])
        assert found * advantage >= 0 and (advantage or found == 0)
    (sized,) = shaped(size, [advantage], [0.0], [gap])
    assert abs(sized) <= abs(advantage) * (1 + bound) + 1e-5


def test_policy_gradient_follows_the_reshaped_advantage_and_not_its_making() -> None:
    logprob = torch.tensor([-1.0, -1.0], requires_grad=True)
    batch = batch_of([2], advantage=[1.0], sampled_logprob=torch.tensor([-1.0, -1.0]))
    first, second = Gap(view="solution", scale=2.0), Gap(view="plain", kept=0.5)
    loss = PolicyGradient(token_credit=(first, second))
    assert loss.views == ("solution", "plain") and loss.needed == ()
    value, _ = loss.tokens(
        logprob, batch, {"solution": seen_of([-1.5, -1.0]), "plain": seen_of([-1.0, -3.0])}
    )
    value.sum().backward()
    assert logprob.grad is not None
    assert (-logprob.grad).tolist() == pytest.approx([0.0, -1.5])
