"""arXiv 2606.00755: the student's own distribution at a higher temperature. Worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.config import build, load_recipe
from opd.objective.loss import Distill
from opd.objective.target import Tempered, entropy
from opd.recipe import Recipe
from opd.teacher.weights import Frozen
from tests.rows import logs, pulled, said_by
from tests.students import distance, pull_of, recipe_terms

TEMPERATURE = "terms.distil.loss.target.temperature"
SURE = (0.9, 0.1)


def recipe_loss(temperature: float) -> Distill:
    loss = recipe_terms("ts_opsd", f"{TEMPERATURE}={temperature}")["distil"].loss
    assert isinstance(loss, Distill)
    return loss


@pytest.mark.parametrize(
    ("temperature", "first", "nats"),
    [(1.0, 0.9, 0.325082973), (2.0, 0.75, 0.562335145), (1e9, 0.5, 0.693147181)],
)
def test_the_target_is_less_sure(temperature: float, first: float, nats: float) -> None:
    """At 2 it is 3 to 1, the square root of 9 to 1, whatever the student says by now."""
    target = recipe_loss(temperature).target
    assert isinstance(target, Tempered)
    found = said_by(target, (0.5, 0.5), plain=SURE)
    assert found == pytest.approx((first, 1 - first), abs=1e-8)
    assert entropy(logs(found)).item() == pytest.approx(nats, abs=1e-8)


def test_the_initial_student_is_pulled_apart() -> None:
    """KL((3/4, 1/4) || (9/10, 1/10)) and s - q."""
    value, pull, _ = pulled(recipe_loss(2.0), SURE, plain=SURE)
    assert value == pytest.approx(0.092331515, abs=1e-8)
    assert pull == pytest.approx((0.15, -0.15), abs=1e-8)


def test_as_sure_as_it_is_nothing_moves(tiny_model_dir: Path) -> None:
    """The teacher is the initial model behind the student's own prompt."""
    recipe = build(Recipe, load_recipe("ts_opsd"))
    assert isinstance(recipe.teacher.weights, Frozen) and set(recipe.teacher.views) == {"plain"}
    still = pull_of(tiny_model_dir, recipe_terms("ts_opsd", f"{TEMPERATURE}=1"))
    moved = pull_of(tiny_model_dir, recipe_terms("ts_opsd"))
    assert max(float(each.abs().max()) for each in still.values()) < 1e-6
    assert distance(still, moved) > 0.99
