"""The teacher writes what it makes of the reference first: arXiv 2601.18734."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from opd.config import build, load_recipe
from opd.objective.loss import Distill
from opd.recipe import Recipe
from opd.run import open_run
from opd.step import annotate, collect, prepare
from opd.teacher.analysis import Analysis
from tests.students import distance, draw_trajectories, recipe_terms, update_of


def test_an_analysis_that_repeats_the_reference_is_its_base(tiny_model_dir: Path) -> None:
    terms, base = recipe_terms("opsd_reason_first"), recipe_terms("opsd")
    loss, found = update_of(tiny_model_dir, terms, draw_trajectories("analysis"))
    expected_loss, expected = update_of(tiny_model_dir, base, draw_trajectories())
    assert loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6
    opsd = build(Recipe, load_recipe("opsd")).teacher.views["solution"]
    recipe = build(Recipe, load_recipe("opsd_reason_first", ["problems.limit=20"]))
    view = recipe.teacher.views["analysis"]
    assert isinstance(view, Analysis) and view.reads == opsd


def test_the_tiny_model_reasons_from_its_references(tmp_path: Path) -> None:
    """It is right on about 98 of 100 problems that it reads the references of."""
    changes = ["problems_per_step=20", f"output={tmp_path}"]
    recipe = build(Recipe, load_recipe("opsd_reason_first", changes))
    run = open_run(recipe, Accelerator(cpu=True))
    groups = collect(run, run.stream.batch(0, 20), 0)
    prepare(run, groups, ("analysis",), 0)
    view = recipe.teacher.views["analysis"]
    assert isinstance(view, Analysis)
    right = [
        view.notes[g.problem.prompt.id].endswith(f"#{g.problem.privileged.answer}") for g in groups
    ]
    assert sum(right) >= 17
    assert all(set(t.views) == {"analysis"} for t in annotate(run, groups, ("analysis",)))


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [("ForwardKL", 0.183786897), ("ReverseKL", 0.192041993), ("JSD", 0.046200829)],
)
def test_divergences_by_hand(divergence: str, expected: float) -> None:
    changed = recipe_terms("opsd_reason_first", f"terms.distil.loss.divergence={divergence}")
    loss = changed["distil"].loss
    assert isinstance(loss, Distill)
    student, target = (
        torch.tensor([row], dtype=torch.float64).log() for row in ((0.4, 0.4, 0.2), (0.7, 0.2, 0.1))
    )
    assert loss.divergence(student, target).item() == pytest.approx(expected, abs=1e-6)
