"""Away from what the solution makes likely, boundedly: arXiv 2605.11609."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd.objective.loss import PolicyGradient
from opd.objective.schedule import Hysteresis
from opd.objective.token_credit import Repulsion
from tests.batches import batch_of, seen_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of

SCALE = "terms.reinforce.loss.token_credit.0.scale"


def credit_of(*overrides: str) -> Repulsion:
    loss = recipe_terms("antisd", *overrides)["reinforce"].loss
    assert isinstance(loss, PolicyGradient)
    (credit,) = loss.token_credit
    assert isinstance(credit, Repulsion)
    return credit


def shaped(credit: Repulsion, advantage: float, gap: float) -> float:
    seen = {"solution": seen_of([gap - 1])}
    return credit(torch.tensor([advantage]), torch.full((1,), -1.0), batch_of([1]), seen).item()


@pytest.mark.parametrize(
    ("gap", "moved"),
    [(-20.0, -0.346573589), (0.0, 0.0), (0.559615788, 0.159226866), (2.0, 0.716890415)],
)
def test_what_a_gap_costs(gap: float, moved: float) -> None:
    credit = credit_of(f"{SCALE}=1.0")
    assert shaped(credit, 0.0, gap) == pytest.approx(-moved, abs=1e-6)
    assert shaped(credit, 0.3, gap) == pytest.approx(0.3 - moved, abs=1e-6)


def test_the_gate_is_on_the_teachers_entropy() -> None:
    gate = credit_of().scale
    assert isinstance(gate, Hysteresis) and gate.metric == "teacher_entropy/solution"
    assert (gate.off, gate.on) == (0.93, 1.0)


def test_a_scale_of_nothing_leaves_the_base_method(tiny_model_dir: Path) -> None:
    rollouts = draw_trajectories()
    _, found = update_of(tiny_model_dir, recipe_terms("antisd", f"{SCALE}=0"), rollouts)
    _, expected = update_of(tiny_model_dir, recipe_terms("grpo"), rollouts)
    assert distance(found, expected) < 1e-6
    assert distance(update_of(tiny_model_dir, recipe_terms("antisd"), rollouts)[1], expected) > 1e-3
