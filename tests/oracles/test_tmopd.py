"""The log-ratio to a better model as the advantage of each sampled token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd.objective.loss import PolicyGradient
from tests.batches import batch_of, seen_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of


def loss_of(*overrides: str) -> PolicyGradient:
    loss = recipe_terms("tmopd", *overrides)["distil"].loss
    assert isinstance(loss, PolicyGradient)
    return loss


def test_advantages_and_the_sum_over_two_tokens() -> None:
    sampled = torch.tensor([-0.3, -1.2])
    batch = batch_of([2], sampled_logprob=sampled, advantage=[5.0])
    teacher = {"plain": seen_of([-0.1, -2.3])}
    logprob = (sampled + torch.tensor([0.1, -0.2])).requires_grad_()
    value, _ = loss_of().tokens(logprob, batch, teacher)
    assert value.sum().item() == pytest.approx(0.6795696, abs=1e-6)
    start = sampled.clone().requires_grad_()
    loss_of().tokens(start, batch, teacher)[0].sum().backward()
    assert start.grad is not None and (-start.grad).tolist() == pytest.approx([0.2, -1.1])


def test_no_ratio_is_clipped() -> None:
    logprob = torch.tensor([-1.0, -1.0], requires_grad=True)
    batch = batch_of([2], sampled_logprob=torch.tensor([-4.0, 4.0]))
    value, observed = loss_of().tokens(logprob, batch, {"plain": seen_of([-1.0, -1.0])})
    value.sum().backward()
    assert observed["clipped"].sum().item() == 0
    assert logprob.grad is not None and bool((logprob.grad != 0).all())


def test_beside_a_reward_that_is_kept_whole_without_a_teacher(tiny_model_dir: Path) -> None:
    credit = "terms.distil.loss.token_credit.0"
    neutral = recipe_terms("tmopd", f"{credit}.kept=1", f"{credit}.scale=0")
    clip = ("terms.reinforce.loss.clip_low=1", "terms.reinforce.loss.clip_high=.inf")
    rollouts = draw_trajectories("plain")
    loss, found = update_of(tiny_model_dir, neutral, rollouts)
    expected_loss, expected = update_of(tiny_model_dir, recipe_terms("grpo", *clip), rollouts)
    assert loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6


def test_on_policy_it_is_the_sampled_reverse_kl(tiny_model_dir: Path) -> None:
    """A correction that is cut at a millionth everywhere stands for ratios of one."""
    rollouts = [t for t in draw_trajectories("plain") if t.views]
    trained = recipe_terms(
        "tmopd",
        "terms.distil.loss.token_credit.0.student=trained",
        "terms.distil.loss.correction={name: TruncatedImportance, cap: 1e-6}",
    )
    _, found = update_of(tiny_model_dir, trained, rollouts)
    sampled = recipe_terms("kdrl", "terms.reinforce=null", "terms.distil.coefficient=1e-6")
    assert distance(found, update_of(tiny_model_dir, sampled, rollouts)[1]) < 1e-4
