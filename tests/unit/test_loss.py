"""Losses of rows and tokens against hand-computed numbers, and where their gradients go."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opd.objective.clip import Clip
from opd.objective.correction import TruncatedImportance
from opd.objective.divergence import JSD, Divergence, ForwardKL, ReverseKL
from opd.objective.logits import Logits
from opd.objective.loss import (
    Contrast,
    Distill,
    Likelihood,
    PolicyGradient,
    RowLoss,
    SampledReverseKL,
)
from opd.objective.schedule import Constant
from opd.objective.support import Full, TopK
from opd.objective.target import Interpolated
from tests.batches import batch_of, seen_of

D0_STUDENT, D0_TEACHER = (0.4, 0.4, 0.2), (0.7, 0.2, 0.1)


def rows_of(
    loss: RowLoss,
    student: Tensor,
    teacher: Tensor,
    *,
    ids: Tensor | None = None,
    sampled_logprob: Tensor | None = None,
) -> Tensor:
    count = len(student)
    ids = torch.zeros(count, dtype=torch.long) if ids is None else ids
    sampled = torch.zeros(count) if sampled_logprob is None else sampled_logprob
    value, observed = loss.rows(Logits(student), ids, sampled, {"solution": Logits(teacher)})
    assert value.shape == (count,) and value.dtype == torch.float32
    assert all(v.shape == (count,) and not v.requires_grad for v in observed.values())
    return value


@pytest.mark.parametrize(
    ("divergence", "temperature", "nats"),
    [
        (ForwardKL(), 1.0, 0.176847506),
        (ReverseKL(), 1.0, 0.266804507),
        (ForwardKL(), 2.0, 0.079867376),
        (ReverseKL(), 2.0, 0.089069212),
    ],
)
def test_temperature_divides_both_sides(
    divergence: Divergence, temperature: float, nats: float
) -> None:
    loss = Distill(target="solution", divergence=divergence, temperature=temperature)
    value = rows_of(loss, torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0]]))
    assert value.item() == pytest.approx(nats, abs=1e-6)


def test_temperature_brings_no_further_factor() -> None:
    loss = Distill(target="solution", divergence=ForwardKL(), temperature=2.0)
    student = torch.tensor([[0.5, 0.25, 0.25]]).log()
    value = rows_of(loss, student, torch.tensor([[0.7, 0.2, 0.1]]).log())
    assert value.item() == pytest.approx(0.0309737, abs=1e-6)


def test_correction_multiplies_the_distillation_loss() -> None:
    student = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]]).log().requires_grad_()
    teacher = torch.tensor([[0.2, 0.3, 0.4, 0.06, 0.04]]).log()
    plain = Distill(target="solution", divergence=JSD(), support=TopK(size=2))
    corrected = Distill(
        target="solution", divergence=JSD(), support=TopK(size=2), correction=TruncatedImportance()
    )
    ids = torch.tensor([1])
    sampled = torch.tensor([math.log(0.3) - 1])
    value = rows_of(corrected, student, teacher, ids=ids, sampled_logprob=sampled)
    assert value.item() == pytest.approx(0.132828629, abs=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    (half,) = torch.autograd.grad(rows_of(plain, student, teacher).sum(), student)
    torch.testing.assert_close(gradient, 2 * half)


def test_no_gradient_reaches_the_teacher() -> None:
    student = torch.randn(4, 6, requires_grad=True)
    teacher = torch.randn(4, 6, requires_grad=True)
    for divergence in (ForwardKL(), ReverseKL(), JSD()):
        rows_of(
            Distill(target="solution", divergence=divergence), student, teacher
        ).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.abs().sum() > 0


def test_no_gradient_flows_through_the_students_part_of_a_target() -> None:
    """The gradient is s - target, whose numbers are those of arXiv 2501.16937."""
    student = torch.tensor([[1.0, 0.0, -1.0]], requires_grad=True)
    target = Interpolated(view="solution", share=Constant(value=0.4))
    value = rows_of(
        Distill(target=target, divergence=ForwardKL()), student, torch.tensor([[0.0, 2.0, 0.0]])
    )
    assert value.item() == pytest.approx(0.1588574, abs=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert gradient[0].tolist() == pytest.approx((0.268824, -0.239456, -0.029368), abs=1e-6)


def test_half_precision_logits_are_raised_before_the_softmax() -> None:
    student, teacher = torch.randn(2, 4, 50, generator=torch.Generator().manual_seed(0))
    low = student.bfloat16(), teacher.bfloat16()
    loss = Distill(target="solution", divergence=ReverseKL())
    expected = rows_of(loss, low[0].float(), low[1].float())
    assert torch.equal(rows_of(loss, *low), expected)


OF_ENTRIES = {"clipped", "cut", "cut_of_raised"}


@pytest.mark.parametrize(
    ("clip", "names"),
    [
        ("none", set()),
        ("token_scale", {"clipped"}),
        ("token_cap", {"clipped"}),
        ("entry_nonneg", OF_ENTRIES),
        ("entry_raw", OF_ENTRIES),
    ],
)
def test_only_a_clip_in_force_is_observed(clip: Clip, names: set[str]) -> None:
    loss = Distill(target="solution", divergence=ForwardKL(), clip=clip)
    student, teacher = torch.tensor([D0_STUDENT]).log(), torch.tensor([D0_TEACHER]).log()
    ids = torch.tensor([0])
    shown = {"solution": Logits(teacher)}
    _, observed = loss.rows(Logits(student), ids, torch.zeros(1), shown)
    assert set(observed) == names


@given(seed=st.integers(0, 2**31), split=st.integers(0, 5))
def test_rows_do_not_see_each_other(seed: int, split: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 5, 7, generator=generator)
    loss = Distill(target="solution", divergence=JSD(), support=TopK(size=3), clip="token_scale")
    parts = [rows_of(loss, student[s], teacher[s]) for s in (slice(split), slice(split, None))]
    torch.testing.assert_close(torch.cat(parts), rows_of(loss, student, teacher))


def test_no_rows_give_a_zero_with_a_gradient() -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    losses = [
        Likelihood(),
        *(
            Distill(target="solution", divergence=JSD(), support=support, clip=clip)
            for support in (Full(), TopK(size=2), TopK(size=2, rest="renormalise"))
            for clip in ("none", "token_scale", "token_cap", "entry_nonneg", "entry_raw")
        ),
    ]
    for loss in losses:
        total = rows_of(loss, student, torch.zeros(0, 5)).sum()
        total.backward()
        assert total.item() == 0
    assert student.grad is not None and student.grad.shape == (0, 5)


def test_likelihood_is_the_cross_entropy_at_temperature_one() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.25, 0.25]]).log()
    value = rows_of(Likelihood(), logits, logits, ids=torch.tensor([0, 1]))
    assert value.mean().item() == pytest.approx(1.0397208, abs=1e-6)
    assert Likelihood().views == ()


def test_sampled_reverse_kl_values_and_expected_gradient() -> None:
    student, teacher = torch.tensor(D0_STUDENT), torch.tensor(D0_TEACHER)
    logits = student.log().requires_grad_()
    batch, scores = batch_of([3]), {"solution": seen_of(teacher.log().tolist())}
    loss, _ = SampledReverseKL(view="solution").tokens(logits.log_softmax(-1), batch, scores)
    assert loss.tolist() == pytest.approx([0.512770760, -0.635124337, -1.115577351], abs=1e-6)
    (expected,) = torch.autograd.grad((student * loss).sum(), logits)
    assert expected.tolist() == pytest.approx([-0.30066311, 0.20044207, 0.10022104], abs=1e-6)


@given(seed=st.integers(0, 2**31))
def test_sampled_reverse_kl_has_the_gradient_of_reverse_kl(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = torch.randn(2, 6, generator=generator)
    logits.requires_grad_()
    log_teacher = teacher.log_softmax(-1)
    scores = {"solution": seen_of(log_teacher.tolist())}
    student = logits.log_softmax(-1)
    loss, _ = SampledReverseKL(view="solution").tokens(student, batch_of([6]), scores)
    (sampled,) = torch.autograd.grad((student.exp().detach() * loss).sum(), logits)
    exact_loss = ReverseKL()(logits.log_softmax(-1), log_teacher)
    (exact,) = torch.autograd.grad(exact_loss, logits)
    torch.testing.assert_close(sampled, exact, atol=1e-6, rtol=1e-5)


def test_sampled_reverse_kl_is_corrected_for_the_sampler() -> None:
    logprob = torch.tensor([-1.0], requires_grad=True)
    batch = batch_of([1], sampled_logprob=torch.tensor([-2.0]))
    scores = {"solution": seen_of([-1.5])}
    corrected = SampledReverseKL(view="solution", correction=TruncatedImportance())
    loss, _ = corrected.tokens(logprob, batch, scores)
    assert loss.item() == pytest.approx(0.5 * -1.0 * 2.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "high", "value", "clipped"),
    [
        (1.5, 1.0, 0.2, -1.2, 1.0),
        (1.5, 1.0, 0.28, -1.28, 1.0),
        (1.5, -1.0, 0.2, 1.5, 0.0),
        (0.5, 1.0, 0.2, -0.5, 0.0),
        (0.5, -1.0, 0.2, 0.8, 1.0),
        (1.1, 1.0, 0.2, -1.1, 0.0),
        (1.1, 0.0, 0.2, 0.0, 0.0),
    ],
)
def test_policy_gradient_clip_table(
    ratio: float, advantage: float, high: float, value: float, clipped: float
) -> None:
    logprob = torch.tensor([-0.5], requires_grad=True)
    sampled = logprob.detach() - math.log(ratio)
    batch = batch_of([1], advantage=[advantage], sampled_logprob=sampled)
    loss, observed = PolicyGradient(clip_high=high).tokens(logprob, batch, {})
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert observed["clipped"].item() == clipped and not observed["clipped"].requires_grad
    loss.sum().backward()
    assert logprob.grad is not None
    expected = 0.0 if clipped else -ratio * advantage
    assert logprob.grad.item() == pytest.approx(expected, abs=1e-6)


def test_policy_gradient_takes_the_advantage_of_its_sequence() -> None:
    logprob = torch.zeros(3, requires_grad=True)
    loss, _ = PolicyGradient().tokens(logprob, batch_of([2, 1], advantage=[1.0, -2.0]), {})
    loss.sum().backward()
    assert logprob.grad is not None and logprob.grad.tolist() == [-1.0, -1.0, 2.0]


def test_corrected_policy_gradient_starts_at_ratio_one() -> None:
    logprob = torch.tensor([-1.0, -0.5, -2.0], requires_grad=True)
    batch = batch_of([3], advantage=[1.0], sampled_logprob=torch.tensor([-1.2, -0.4, -3.5]))
    corrected = PolicyGradient(correction=TruncatedImportance(cap=2.0))
    loss, observed = corrected.tokens(logprob, batch, {})
    assert loss.tolist() == pytest.approx([-1.221403, -0.904837, -2.0], abs=1e-6)
    assert observed["clipped"].tolist() == [0.0, 0.0, 0.0]
    loss.sum().backward()
    assert logprob.grad is not None
    assert logprob.grad.tolist() == pytest.approx([-1.221403, -0.904837, -2.0], abs=1e-6)


def test_policy_gradient_survives_a_huge_ratio() -> None:
    logprob = torch.tensor([0.0], requires_grad=True)
    batch = batch_of([1], advantage=[-1.0], sampled_logprob=torch.tensor([-500.0]))
    loss, _ = PolicyGradient().tokens(logprob, batch, {})
    assert loss.item() == pytest.approx(math.exp(20), rel=1e-5)


@pytest.mark.parametrize(("margin", "value"), [(0.5, 0.4), (0.1, 0.0), (0.0, 0.0)])
def test_contrast_is_a_hinge_on_taken_tokens(margin: float, value: float) -> None:
    """Numbers of arXiv 2605.06597."""
    logprob = torch.tensor([-1.0], requires_grad=True)
    seen = {"right": seen_of([-0.8]), "wrong": seen_of([-1.3])}
    loss, _ = Contrast(view="right", negative="wrong", margin=margin).tokens(
        logprob, batch_of([1]), seen
    )
    assert loss.item() == pytest.approx(value, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    # At 0.1 the hinge is just where it bends.
    assert margin == 0.1 or gradient.item() == pytest.approx(-2.0 if value else 0.0)
