"""The implementations that gpu.py compares: ours in two forms, and its peers.

Each makes, of a divergence's name, a function to the mean divergence from student states `[N, D]`,
head `[V, D]` and teacher states `[N, D]`. A peer is imported when it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import kl_div, linear, log_softmax

from opd.learner import row_kernel
from opd.learner.chunked import linear_divergence
from opd.objective.divergence import JSD, Divergence, ForwardKL, ReverseKL

DIVERGENCES: Mapping[str, tuple[Divergence, float]] = {
    "reverse_kl": (ReverseKL(), 1.0),
    "jsd": (JSD(), 0.5),
    "forward_kl": (ForwardKL(), 0.0),
}
"""Ours, and the `beta` by which the peers mean the same."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The mean divergence from `[N, D]` student states, `[V, D]` head and `[N, D]` teacher states."""
Problem = tuple[Tensor, Tensor, Tensor]
Make = Callable[[str], Loss]


def dense(divergence: str, student: Tensor, teacher: Tensor) -> Tensor:
    """Divergences `[n]` from `[n, V]` logits, as one would write them."""
    log_s, log_q = log_softmax(student, -1), log_softmax(teacher, -1)
    if divergence == "reverse_kl":
        return kl_div(log_q, log_s, reduction="none", log_target=True).sum(-1)
    if divergence == "forward_kl":
        return kl_div(log_s, log_q, reduction="none", log_target=True).sum(-1)
    mixture = torch.logaddexp(log_s, log_q) - math.log(2)
    both = kl_div(mixture, log_s, reduction="none", log_target=True) + kl_div(
        mixture, log_q, reduction="none", log_target=True
    )
    return both.sum(-1) / 2


def gap(loss: Loss, problem: Problem, exact: Tensor) -> float:
    """Norm of the error of the rows' gradient over the norm of the exact one."""
    student = problem[0]
    student.grad = problem[1].grad = None
    loss(*problem).backward()
    assert student.grad is not None, "every implementation gives the student a gradient"
    error = (student.grad.double() - exact).norm() / exact.norm()
    student.grad = problem[1].grad = None
    return float(error)


def naive(divergence: str) -> Loss:
    def loss(student: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
        with torch.no_grad():
            shown = linear(teacher, head)
        return dense(divergence, linear(student, head).float(), shown.float()).mean()

    return loss


def trl(divergence: str) -> Loss:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    beta = DIVERGENCES[divergence][1]

    def loss(student: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
        per_token, _ = ChunkedDivergenceFunction.apply(  # pyright: ignore
            student, head, None, teacher, head.detach(), None, beta
        )
        return per_token.mean()

    return loss


def liger(divergence: str) -> Loss:
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction  # pyright: ignore

    beta = DIVERGENCES[divergence][1]

    def loss(student: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
        return LigerFusedLinearJSDFunction.apply(student, head, teacher, head.detach(), None, beta)

    return loss


def liger_chunked(divergence: str) -> Loss:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # pyright: ignore

    fused = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta=DIVERGENCES[divergence][1],
        compiled=torch.cuda.is_available(),
    )

    def loss(student: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
        labels = torch.zeros(len(student), dtype=torch.long, device=student.device)
        return fused(student, head, teacher, head.detach(), labels)

    return loss


def opd(divergence: str, chunk_tokens: int | None = None) -> Loss:
    """As it ships."""
    part = DIVERGENCES[divergence][0]

    def loss(student: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
        weights = torch.full((len(student),), 1 / len(student), device=student.device)
        total, _ = linear_divergence(
            *(student, head, teacher, head, part), weights=weights, chunk_tokens=chunk_tokens
        )
        return total

    return loss


def opd_compiled(divergence: str, chunk_tokens: int | None = None) -> Loss:
    """As it ships where the kernel cannot run."""
    loss = opd(divergence, chunk_tokens)

    def without_kernel(student: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
        with patch.object(row_kernel, "supported", lambda *_: False):
            return loss(student, head, teacher)

    return without_kernel


OURS: Mapping[str, Callable[..., Loss]] = {
    "opd": opd,
    "opd compiled": opd_compiled,
}
PEERS: Mapping[str, Make] = {
    "trl": trl,
    "liger": liger,
    "liger chunked": liger_chunked,
    "naive": naive,
}
IMPLEMENTATIONS: Mapping[str, Make] = {**OURS, **PEERS}
