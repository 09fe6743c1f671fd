"""Advantages of single tokens."""

from __future__ import annotations

import math

import pytest
import torch

from opd.objective.loss import PolicyGradient
from opd.objective.token_credit import Gap, TokenCredit
from opd.types import Seen
from tests.batches import batch_of, seen_of

EVERY: tuple[TokenCredit, ...] = (Gap(view="solution"),)


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
    teachers = dict.fromkeys(part.views, absent)
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
