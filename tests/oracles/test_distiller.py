"""The bound on mutual information by which arXiv 2109.11105 matches representations. Worked by
hand."""

from __future__ import annotations

from dataclasses import replace
from math import log
from pathlib import Path

import pytest
import torch

from opd.objective.hidden_loss import HiddenInformation
from opd.objective.schedule import Constant
from tests.batches import batch_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of


def recipe_loss(**changes: float) -> HiddenInformation:
    loss = recipe_terms("distiller")["inform"].loss
    assert isinstance(loss, HiddenInformation)
    return replace(loss, **changes)


def test_two_pairs_that_are_told_apart_are_worth_the_log_of_two() -> None:
    """The critic is 5 on the diagonal and -5 off it: opposite states at temperature 1/5."""
    states = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    loss, _ = recipe_loss(alpha=1.0, temperature=0.2).states(
        states, batch_of([2]), {"solution": states}
    )
    assert loss.mean().item() == pytest.approx(-0.6931018, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_a_critic_that_says_nothing_is_worth_nothing(alpha: float) -> None:
    one, other = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 1.0]] * 3)
    loss, _ = recipe_loss(alpha=alpha).states(one, batch_of([3]), {"solution": other})
    assert loss.tolist() == pytest.approx([0.0] * 3, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_the_bound_never_exceeds_the_log_of_pairs_over_alpha(alpha: float) -> None:
    states = torch.eye(8)
    loss, _ = recipe_loss(alpha=alpha, temperature=0.05).states(
        states, batch_of([8]), {"solution": states}
    )
    assert -loss.mean().item() <= log(8 / alpha) + 1e-5
    assert alpha < 1 or -loss.mean().item() > log(8) - 1e-3


def test_a_share_of_nothing_is_the_base_method(tiny_model_dir: Path) -> None:
    terms = recipe_terms("distiller")
    off = {**terms, "inform": replace(terms["inform"], coefficient=Constant(value=0.0))}
    trajectories = draw_trajectories()
    found = [
        update_of(tiny_model_dir, each, trajectories) for each in (off, recipe_terms("opsd"), terms)
    ]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert distance(found[0][1], found[1][1]) < 1e-6 < distance(found[2][1], found[1][1])
