"""Our distillation losses against TRL's own functions, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from opd.objective.correction import TruncatedImportance
from opd.objective.divergence import JSD, Divergence, ForwardKL, ReverseKL
from opd.objective.logits import Logits
from opd.objective.loss import Distill, RowLoss, SampledReverseKL
from opd.objective.support import Full, Support, TopK
from opd.objective.term import Term
from tests.batches import batch_of, scores_of, seen_of

pytest.importorskip("trl")

from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.experimental.sdft import loss_utils
from trl.experimental.sdpo import loss_utils as feedback_loss_utils
from trl.experimental.server_distillation import server_distillation_trainer as server
from trl.trainer import distillation_trainer
from trl.trainer.utils import selective_log_softmax

DIRECTIONS = [
    (0.0, ForwardKL()),
    (1.0, ReverseKL()),
    (0.5, JSD()),
    (0.1, JSD(teacher_weight=0.1)),
    (0.9, JSD(teacher_weight=0.9)),
]


def logits(rows: int = 7, vocabulary: int = 31, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, rows, vocabulary, generator=generator)
    return student.requires_grad_(), teacher


def ours(loss: RowLoss, student: Tensor, teacher: Tensor) -> Tensor:
    ids = torch.zeros(len(student), dtype=torch.long)
    shown = {"view": Logits(teacher)}
    return loss.rows(Logits(student), ids, torch.zeros(len(student)), shown)[0]


def assert_close(mine: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def assert_same(mine: Tensor, theirs: Tensor, student: Tensor) -> None:
    assert_close(mine, theirs)
    (gradient,) = torch.autograd.grad(mine.sum(), student)
    (reference,) = torch.autograd.grad(theirs.sum(), student)
    assert_close(gradient, reference)


@pytest.mark.parametrize(("beta", "divergence"), DIRECTIONS)
@pytest.mark.parametrize("temperature", [1.0, 0.9, 2.0])
def test_generalized_jsd_loss(beta: float, divergence: Divergence, temperature: float) -> None:
    """trl.experimental.gkd.gkd_trainer.GKDTrainer.generalized_jsd_loss."""
    student, teacher = logits()
    loss = Distill(target="view", divergence=divergence, temperature=temperature)
    theirs = GKDTrainer.generalized_jsd_loss(
        student, teacher, beta=beta, temperature=temperature, reduction="none"
    )
    assert_same(ours(loss, student, teacher), theirs.sum(-1), student)


@pytest.mark.parametrize(("beta", "divergence"), DIRECTIONS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_divergence_over_hidden_states(
    beta: float, divergence: Divergence, temperature: float
) -> None:
    """trl.trainer.distillation_trainer._chunked_divergence_loss, masked token mean."""
    generator = torch.Generator().manual_seed(1)
    hidden, shown = torch.randn(2, 2, 4, 8, generator=generator) / 2
    hidden.requires_grad_()
    head = torch.randn(19, 8, generator=generator)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    theirs, _, _ = distillation_trainer._chunked_divergence_loss(
        hidden, shown, head, head, mask, beta, temperature=temperature
    )
    loss = Distill(target="view", divergence=divergence, temperature=temperature)
    kept = mask.bool()
    per_token = ours(loss, hidden[kept] @ head.T, shown[kept] @ head.T)
    batch, term = batch_of([2, 4]), Term(loss=loss)
    weight = term.weight(batch, {"view": scores_of(6)})
    mine = term.numerator(per_token, weight, batch, 4) / term.mass(weight, batch, 4)
    assert_same(mine, theirs, hidden)


@pytest.mark.parametrize("module", [loss_utils, feedback_loss_utils])
@pytest.mark.parametrize(("alpha", "divergence"), DIRECTIONS)
@pytest.mark.parametrize(
    ("support", "tail"),
    [(Full(), None), (TopK(size=5), True), (TopK(size=5, rest="renormalise"), False)],
)
def test_self_distillation_losses(
    module: object, alpha: float, divergence: Divergence, support: Support, tail: bool | None
) -> None:
    """compute_full_logit_... and compute_topk_self_distillation_loss of sdft and sdpo."""
    student, teacher = logits(seed=2)
    if tail is None:
        theirs = module.compute_full_logit_self_distillation_loss(  # pyright: ignore
            student, teacher, distillation_alpha=alpha
        )
    else:
        theirs = module.compute_topk_self_distillation_loss(  # pyright: ignore
            student,
            teacher,
            distillation_topk=5,
            distillation_alpha=alpha,
            distillation_add_tail=tail,
        )
    loss = Distill(target="view", divergence=divergence, support=support)
    assert_same(ours(loss, student, teacher), theirs, student)


def test_sampled_token_loss_with_importance_clipping() -> None:
    """compute_sampled_token_self_distillation_loss, apply_importance_sampling_clipping."""
    student, teacher = logits(seed=3)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(31, (7,), generator=generator)
    logprob = selective_log_softmax(student, ids)
    sampled = logprob.detach() + torch.randn(7, generator=generator)
    theirs = loss_utils.apply_importance_sampling_clipping(
        loss_utils.compute_sampled_token_self_distillation_loss(
            student, teacher, ids, distillation_alpha=1.0
        ),
        logprob,
        sampled,
        2.0,
    )
    scores = {"view": seen_of(selective_log_softmax(teacher, ids).tolist())}
    loss = SampledReverseKL(view="view", correction=TruncatedImportance(cap=2.0))
    mine, _ = loss.tokens(logprob, batch_of([7], sampled_logprob=sampled), scores)
    assert_same(mine, theirs, student)


@pytest.mark.parametrize(("alpha", "divergence"), DIRECTIONS)
def test_distillation_with_importance_clipping(alpha: float, divergence: Divergence) -> None:
    """apply_importance_sampling_clipping on the top-k loss with a tail."""
    student, teacher = logits(seed=4)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(31, (7,), generator=generator)
    logprob = selective_log_softmax(student, ids)
    sampled = logprob.detach() + torch.randn(7, generator=generator)
    theirs = loss_utils.apply_importance_sampling_clipping(
        loss_utils.compute_topk_self_distillation_loss(
            student,
            teacher,
            distillation_topk=4,
            distillation_alpha=alpha,
            distillation_add_tail=True,
        ),
        logprob,
        sampled,
        2.0,
    )
    loss = Distill(
        target="view",
        divergence=divergence,
        support=TopK(size=4),
        correction=TruncatedImportance(cap=2.0),
    )
    mine, _ = loss.rows(Logits(student), ids, sampled, {"view": Logits(teacher)})
    assert_same(mine, theirs, student)


@pytest.mark.parametrize(("beta", "divergence"), DIRECTIONS)
def test_excluded_vocabulary(beta: float, divergence: Divergence) -> None:
    """trl.experimental.server_distillation._jsd_divergence with a mask over the support."""
    student, teacher = logits(seed=5)
    kept = torch.arange(31) < 20
    student_log = student.masked_fill(~kept, -math.inf).log_softmax(-1)
    teacher_log = teacher.masked_fill(~kept, -math.inf).log_softmax(-1)
    theirs = server._jsd_divergence(student_log, teacher_log, beta, kept.expand(7, -1))
    mine = divergence(student_log, teacher_log)
    assert_close(mine, theirs.sum(-1))
    (gradient,) = torch.autograd.grad(mine.sum(), student)
    assert bool(gradient.isfinite().all())
