"""What holds a policy near a reference: arXiv 2402.03300, and 2606.04036 less a constant."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.loss import SampledForwardKL
from opd.types import Seen
from tests.batches import batch_of
from tests.rows import D0_STUDENT, D0_TEACHER, logs
from tests.students import distance, draw_trajectories, recipe_terms, update_of


def pulled(logprob: float, theirs: float) -> tuple[float, float]:
    """(the loss of a token, its slope in the token's log-prob)."""
    leaf = torch.tensor([logprob], dtype=torch.float64, requires_grad=True)
    said = torch.tensor([theirs], dtype=torch.float64)
    seen = {"initial": Seen(said, torch.zeros(1), torch.ones(1, dtype=torch.bool))}
    value, _ = SampledForwardKL(view="initial").tokens(leaf, batch_of([1]), seen)
    (pull,) = torch.autograd.grad(value.sum(), leaf)
    return value.item(), pull.item()


@pytest.mark.parametrize(
    ("logprob", "theirs", "value", "slope"),
    [
        (-1.0, -0.5, 0.148721271, -0.648721271),
        # As 2606.04036 writes it, 1.023143551.
        (math.log(0.5), math.log(0.4), 0.023143551, 0.2),
        (-2.0, -2.0, 0.0, 0.0),
    ],
)
def test_value_and_slope(logprob: float, theirs: float, value: float, slope: float) -> None:
    assert pulled(logprob, theirs) == pytest.approx((value, slope), abs=1e-8)


def test_a_reference_far_above_pulls_up_as_far_as_ratios_go() -> None:
    assert pulled(-50.0, -0.1)[1] == pytest.approx(1 - math.exp(20))


def test_its_mean_over_the_student_is_forward_kls_gradient() -> None:
    """s - q in the logits."""
    logits = logs(D0_STUDENT)[0].requires_grad_()
    ones = torch.ones(3, dtype=torch.bool)
    seen = {"initial": Seen(logs(D0_TEACHER)[0], torch.zeros(3), ones)}
    said = logits.log_softmax(-1)
    value, _ = SampledForwardKL(view="initial").tokens(said, batch_of([3]), seen)
    drawn = said.exp().detach()
    assert (drawn * value).sum().item() == pytest.approx(0.192041993, abs=1e-8)
    (pull,) = torch.autograd.grad((drawn * value).sum(), logits)
    assert pull.tolist() == pytest.approx([-0.3, 0.2, 0.1])


def test_a_policy_that_is_its_reference_leaves_the_base_method(tiny_model_dir: Path) -> None:
    rollouts = draw_trajectories()
    own = [replace(t, views={"initial": t.rollout.prompt_ids}) for t in rollouts]
    terms = recipe_terms("grpo_reference", "terms.near.coefficient=1")
    _, expected = update_of(tiny_model_dir, recipe_terms("grpo"), rollouts)
    assert distance(update_of(tiny_model_dir, terms, own)[1], expected) < 1e-5
    apart = update_of(tiny_model_dir, terms, draw_trajectories("initial"))[1]
    assert distance(apart, expected) > 1e-2
