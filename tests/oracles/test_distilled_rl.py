"""A right response's gain apportioned by a better model: arXiv 2607.17247."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.sequence_loss import Apportioned
from opd.types import Seen
from tests.batches import batch_of
from tests.students import distance, drawn_by, recipe_terms, update_of

BOUND = "terms.reinforce.loss.bound"


def pulls(
    ratios: list[float], advantage: list[float], lengths: list[int], present: bool = True
) -> list[float]:
    """What each token's log-prob is pushed up by on policy, from the teacher's ratios to it."""
    loss = recipe_terms("distilled_rl")["reinforce"].loss
    assert isinstance(loss, Apportioned)
    logprob = -torch.arange(1.0, len(ratios) + 1, dtype=torch.float64) / 4
    logprob.requires_grad_()
    batch = batch_of(lengths, advantage=advantage, sampled_logprob=logprob.detach())
    teacher = logprob.detach() + torch.tensor(ratios, dtype=torch.float64).log()
    here = torch.full((len(ratios),), present)
    seen = {"plain": Seen(teacher * here, torch.zeros_like(teacher), here)}
    loss.sequences(logprob, batch, seen)[0].sum().backward()
    assert logprob.grad is not None
    return (-logprob.grad).tolist()


RATIOS, FACTORS = [1.75, 0.5, 0.2], (2.638816, 0.753947, 0.502632)


def test_a_gain_lies_on_what_the_teacher_likes() -> None:
    """.2 counts as 1/3, and the geometric mean of the three is (1.75 .5 / 3)^(1/3) = .663177."""
    assert pulls(RATIOS, [1.0], [3]) == pytest.approx(FACTORS, abs=1e-6)
    assert math.prod(pulls(RATIOS, [1.0], [3])) == pytest.approx(1.0, abs=1e-9)
    assert pulls([9.0, 1.0], [0.5], [2]) == pytest.approx([3**0.5 / 2, 3**-0.5 / 2], abs=1e-6)


@pytest.mark.parametrize("advantage", [-1.0, 0.0])
def test_no_other_response_is_apportioned(advantage: float) -> None:
    assert pulls(RATIOS, [advantage], [3]) == [advantage] * 3


def test_responses_do_not_share_a_mean() -> None:
    found = pulls([*RATIOS, 2.0, *RATIOS], [1.0, 0.5, -1.0], [3, 1, 3])
    assert found == pytest.approx([*FACTORS, 0.5, -1, -1, -1], abs=1e-6)


def test_a_response_without_the_teacher_is_left_as_it_is() -> None:
    assert pulls(RATIOS, [1.0], [3], present=False) == [1.0] * 3


def test_a_bound_of_one_is_the_base_method(tiny_model_dir: Path) -> None:
    """And so it is where nothing is gained; on tokens that the student has just drawn."""
    rollouts = [
        replace(each, views=dict.fromkeys(["plain"] if each.views else [], (5, 6, 7)))
        for each in drawn_by(tiny_model_dir)
    ]
    _, expected = update_of(tiny_model_dir, recipe_terms("grpo"), rollouts)
    _, even = update_of(tiny_model_dir, recipe_terms("distilled_rl", f"{BOUND}=1"), rollouts)
    assert distance(even, expected) < 1e-6
    losing = [replace(each, advantage=-abs(each.advantage)) for each in rollouts]
    _, lost = update_of(tiny_model_dir, recipe_terms("distilled_rl"), losing)
    assert distance(lost, update_of(tiny_model_dir, recipe_terms("grpo"), losing)[1]) < 1e-6
    whole_loss, whole = update_of(tiny_model_dir, recipe_terms("distilled_rl"), rollouts)
    assert distance(whole, expected) > 1e-2
    cut = update_of(tiny_model_dir, recipe_terms("distilled_rl"), rollouts, tokens_per_batch=1)
    assert cut[0] == pytest.approx(whole_loss, rel=1e-5) and distance(cut[1], whole) < 1e-5
