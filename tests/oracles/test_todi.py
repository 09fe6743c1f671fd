"""arXiv 2505.16297: each entry's own share of both divergences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd.objective.divergence import Entrywise, ForwardKL, MixedKL, Probs, ReverseKL
from opd.objective.loss import Distill
from opd.objective.term import Term
from tests.rows import A_STUDENT, A_TEACHER, logs, pulled
from tests.students import draw_trajectories, update_of


def test_the_shares_and_the_divergence() -> None:
    share = Entrywise().forward_share(Probs(logs(A_STUDENT)), Probs(logs(A_TEACHER)))
    assert share[0].tolist() == pytest.approx((0.583333, 0.444444, 0.285714), abs=1e-6)
    value = pulled(Distill(target="q", divergence=Entrywise()), A_STUDENT, q=A_TEACHER)[0]
    assert value == pytest.approx(0.2158952, abs=1e-6)


def test_the_gradient_is_that_of_fixed_shares() -> None:
    student = logs(A_STUDENT).requires_grad_()
    s, q = student.log_softmax(-1), logs(A_TEACHER)
    share = torch.sigmoid(q - s).detach()
    entries = share * q.exp() * (q - s) + (1 - share) * s.exp() * (s - q)
    (want,) = torch.autograd.grad(entries.sum(), student)
    pull = pulled(Distill(target="q", divergence=Entrywise()), A_STUDENT, q=A_TEACHER)[1]
    assert pull == pytest.approx(want[0].tolist(), abs=1e-9)


def test_the_value_is_that_of_both_kls(tiny_model_dir: Path) -> None:
    """On a real batch: (q - s) log(q / s) summed, whoever has which share."""

    def loss_of(*divergences: Entrywise | MixedKL | ForwardKL | ReverseKL) -> float:
        terms = {
            str(number): Term(loss=Distill(target="solution", divergence=each))
            for number, each in enumerate(divergences)
        }
        return update_of(tiny_model_dir, terms, draw_trajectories())[0]

    both = loss_of(ForwardKL(), ReverseKL())
    assert loss_of(Entrywise()) == pytest.approx(both, rel=1e-5)
    assert loss_of(MixedKL(share=0.5)) == pytest.approx(both / 2, rel=1e-5)
