"""Likelihood of verified samples: a policy gradient with reward 1 and no failures. Worked by
hand."""

from __future__ import annotations

import pytest
import torch

from opd.objective.correction import TruncatedImportance
from opd.objective.logits import Logits
from opd.objective.loss import Likelihood, PolicyGradient
from tests.batches import batch_of

STUDENT = (0.5, 0.25, 0.25)


def student() -> torch.Tensor:
    return torch.tensor(STUDENT).log().requires_grad_()


def test_the_mean_of_two_tokens() -> None:
    found, _ = Likelihood().rows(
        Logits(student().expand(2, 3)), torch.tensor([0, 1]), torch.zeros(2), {}
    )
    assert found.mean().item() == pytest.approx(1.0397208, abs=1e-6)


def test_it_is_the_policy_gradient_of_successes() -> None:
    taken, first, second = torch.tensor([0, 1, 2]), student(), student()
    Likelihood().rows(Logits(first.expand(3, 3)), taken, torch.zeros(3), {})[0].mean().backward()
    logprob = second.log_softmax(-1)[taken]
    batch = batch_of([3], advantage=[1.0], sampled_logprob=logprob.detach())
    loss, _ = PolicyGradient(correction=TruncatedImportance(cap=1e9)).tokens(logprob, batch, {})
    loss.mean().backward()
    assert first.grad is not None and second.grad is not None
    # Each token is taken once: a third of the sum of p - onehot.
    assert first.grad.tolist() == pytest.approx([0.5 - 1 / 3, 0.25 - 1 / 3, 0.25 - 1 / 3])
    assert second.grad.tolist() == pytest.approx(first.grad.tolist(), abs=1e-6)
