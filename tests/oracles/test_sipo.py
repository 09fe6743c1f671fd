"""Credit moved within a response by the reference against mistakes: arXiv 2609.36742. Worked by
hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opd.objective.sequence_loss import Redistributed
from opd.types import Seen
from tests.batches import batch_of, seen_of
from tests.rows import D0_STUDENT, D0_TEACHER
from tests.students import distance, draw_trajectories, recipe_terms, update_of

SCALE = "terms.reinforce.loss.loss.token_credit.0.scale"
VIEWS = ("solution", "wrong", "wrong_too")


def pulls(
    advantage: list[float], lengths: list[int], teachers: Mapping[str, Seen], scale: float = 1.0
) -> list[float]:
    """What each token's log-prob is pushed up by, on policy."""
    loss = recipe_terms("sipo", f"{SCALE}={scale}")["reinforce"].loss
    assert isinstance(loss, Redistributed)
    logprob: Tensor = torch.full((sum(lengths),), -1.0, requires_grad=True)
    batch = batch_of(lengths, advantage=advantage, sampled_logprob=logprob.detach())
    loss.sequences(logprob, batch, teachers)[0].sum().backward()
    assert logprob.grad is not None
    return (-logprob.grad).tolist()


def said(**views: list[float]) -> dict[str, Seen]:
    return {view: seen_of([math.log(p) for p in each]) for view, each in views.items()}


def test_the_gap_is_to_the_mean_probability_of_mistakes() -> None:
    """.847297860 (not .906189378, to the mean of logs), beside a token on which all agree."""
    teachers = said(solution=[0.7, 0.3], wrong=[0.4, 0.3], wrong_too=[0.2, 0.3])
    assert pulls([0.0], [2], teachers) == pytest.approx([0.847297860 / 2, -0.847297860 / 2])


@pytest.mark.parametrize(
    ("advantage", "scale", "expected"),
    [
        (1.0, 1.0, (1.626381485, 0.373618515)),
        (-1.0, 1.0, (-0.373618515, -1.626381485)),
        (0.0, 0.1, (0.0626381485, -0.0626381485)),
        (1.0, 0.0, (1.0, 1.0)),
    ],
)
def test_credit_moves_and_none_is_added(
    advantage: float, scale: float, expected: tuple[float, float]
) -> None:
    """Gaps of .559615788 and -.693147181, whose mean is -.066765697."""
    right, wrong = list(D0_TEACHER[:2]), list(D0_STUDENT[:2])
    teachers = said(solution=right, wrong=wrong, wrong_too=wrong)
    found = pulls([advantage], [2], teachers, scale)
    assert found == pytest.approx(expected, abs=1e-6)
    assert sum(found) == pytest.approx(2 * advantage, abs=1e-6)


def test_responses_do_not_share_a_mean() -> None:
    teachers = said(solution=[0.5, 0.5, 0.1], wrong=[0.5, 0.25, 0.4], wrong_too=[0.5, 0.25, 0.4])
    half = math.log(2) / 2
    assert pulls([0.0, 1.0], [2, 1], teachers) == pytest.approx([-half, half, 1.0], abs=1e-6)


# On a real small batch.


def test_without_a_scale_or_a_mistake_it_is_the_base_method(tiny_model_dir: Path) -> None:
    every = [t for t in draw_trajectories(*VIEWS) if t.views]
    blind = [replace(t, views={"solution": t.views["solution"]}) for t in every]
    _, expected = update_of(tiny_model_dir, recipe_terms("grpo"), every)
    _, still = update_of(tiny_model_dir, recipe_terms("sipo", f"{SCALE}=0"), every)
    assert distance(still, expected) < 1e-5
    assert distance(update_of(tiny_model_dir, recipe_terms("sipo"), blind)[1], expected) < 1e-5
    assert distance(update_of(tiny_model_dir, recipe_terms("sipo"), every)[1], expected) > 1e-3


def test_a_group_that_fails_as_a_whole_still_learns(tiny_model_dir: Path) -> None:
    """Where all advantages are 0, and no split changes it."""
    failed = [replace(t, advantage=0.0) for t in draw_trajectories(*VIEWS) if t.views]
    _, silent = update_of(tiny_model_dir, recipe_terms("grpo"), failed)
    assert all(not each.any() for each in silent.values())
    loss, found = update_of(tiny_model_dir, recipe_terms("sipo"), failed)
    assert any(each.any() for each in found.values())
    again, cut = update_of(tiny_model_dir, recipe_terms("sipo"), failed, tokens_per_batch=1)
    assert again == pytest.approx(loss, abs=1e-6) and distance(cut, found) < 1e-5
