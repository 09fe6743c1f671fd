"""An unbiased sampled reverse KL beside a policy gradient: arXiv 2604.10674."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.divergence import ReverseKL
from opd.objective.loss import RatioReverseKL
from opd.types import Seen
from tests.batches import batch_of, scores_of, seen_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of

LOSS = RatioReverseKL(view="skill")


@pytest.mark.parametrize(
    ("student", "teacher", "sampling", "value", "pull"),
    [
        (0.5, 0.25, 0.5, 0.193147, 0.693147),
        (0.5, 0.25, 0.4, 0.241434, 0.866434),
        (0.2, 0.4, 0.2, 0.306853, -0.693147),
        (0.3, 0.3, 0.3, 0.0, 0.0),
    ],
)
def test_value_and_gradient_of_a_token(
    student: float, teacher: float, sampling: float, value: float, pull: float
) -> None:
    logprob = torch.tensor([math.log(student)], requires_grad=True)
    batch = batch_of([1], sampled_logprob=torch.tensor([math.log(sampling)]))
    loss, _ = LOSS.tokens(logprob, batch, {"skill": seen_of([math.log(teacher)])})
    assert loss.item() == pytest.approx(value, abs=1e-6)
    loss.sum().backward()
    assert logprob.grad is not None and logprob.grad.item() == pytest.approx(pull, abs=1e-6)


def test_the_ratio_carries_a_part_of_the_gradient() -> None:
    """By central differences of the value: .5 where the sampling policy moves along."""

    def value(student: float, sampling: float) -> float:
        logprob = torch.tensor([student], dtype=torch.float64)
        batch = batch_of([1], sampled_logprob=torch.tensor([sampling], dtype=torch.float64))
        teacher = {"skill": Seen(torch.full_like(logprob, math.log(0.25)), logprob, logprob > -9)}
        return LOSS.tokens(logprob, batch, teacher)[0].item()

    here, step = math.log(0.5), 1e-5
    with_ratio = value(here + step, here) - value(here - step, here)
    bare = value(here + step, here + step) - value(here - step, here - step)
    assert with_ratio / (2 * step) == pytest.approx(0.693147181, abs=1e-8)
    assert bare / (2 * step) == pytest.approx(0.5, abs=1e-8)


def test_every_action_token_is_counted_whether_or_not_a_skill_is_there() -> None:
    """Two tokens of a response with a skill, three of one without: a fifth of the sum."""
    batch, present = batch_of([2, 3]), [True, True, False, False, False]
    for name, term in recipe_terms("skillsd").items():
        scores = {"skill": scores_of(5, present=present)}
        weight = term.weight(batch, scores)
        numerator = term.numerator(torch.tensor([1.0, 2.0, 7.0, 7.0, 7.0]), weight, batch, 8)
        expected = {"reinforce": 24 / 5, "distil": 3 / 5}[name]
        assert (numerator / term.mass(weight, batch, 8)).item() == pytest.approx(expected)


def test_its_mean_is_the_reverse_kl_and_so_is_its_gradient() -> None:
    student, teacher = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    logits = student.log().requires_grad_()
    batch = batch_of([3], sampled_logprob=student.log())
    seen = {"skill": seen_of(teacher.log().tolist())}
    loss, _ = LOSS.tokens(logits.log_softmax(-1), batch, seen)
    mean = (student * loss).sum()
    assert mean.item() == pytest.approx(0.183786897, abs=1e-6)
    (found,) = torch.autograd.grad(mean, logits)
    exact = ReverseKL()(logits.log_softmax(-1), teacher.log())
    torch.testing.assert_close(found, torch.autograd.grad(exact, logits)[0])


def test_a_token_that_the_teacher_alone_finds_likely_keeps_an_exact_gradient() -> None:
    logprob = torch.tensor([-18.0], requires_grad=True)
    batch = batch_of([1], sampled_logprob=torch.tensor([-18.0]))
    LOSS.tokens(logprob, batch, {"skill": seen_of([-0.5])})[0].sum().backward()
    assert logprob.grad is not None and logprob.grad.item() == pytest.approx(-17.5, abs=1e-6)


def test_without_a_teacher_it_is_the_policy_gradient(tiny_model_dir: Path) -> None:
    terms = recipe_terms("skillsd")
    base = recipe_terms("grpo")
    blind = [replace(t, views={}) for t in draw_trajectories()]
    loss, found = update_of(tiny_model_dir, terms, blind)
    expected_loss, expected = update_of(tiny_model_dir, base, blind)
    assert loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6
    _, seeing = update_of(tiny_model_dir, terms, draw_trajectories("skill"))
    assert distance(seeing, expected) > 1e-5
