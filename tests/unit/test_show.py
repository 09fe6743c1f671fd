"""What `opd show` says of a recipe."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from opd.config import build, load_recipe
from opd.recipe import Recipe
from opd.show import show
from tests.runs import ROWS, run

SILENT = "<think>"
"""In the tests' template, what a prompt ends with where nobody is to think."""

PAIRS = [(False, True), (True, False), (False, False), (True, True)]
"""Student and teacher, as arXiv 2609.38995 pairs them."""


def shown(recipe: Recipe) -> str:
    console = Console(record=True, width=200, file=StringIO())
    show(recipe, console)
    return " ".join(console.export_text().split())


def word(thinks: bool) -> str:
    return "on" if thinks else "off"


def switch(thinks: bool) -> str:
    return "true" if thinks else "false"


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@pytest.mark.parametrize("key", ["teacher.thinking", "teacher.thinking_by_view.solution"])
def test_a_pair_of_modes(tiny_model_dir: Path, key: str, student: bool, teacher: bool) -> None:
    """Of the recipe for one GPU, whose default is a teacher that thinks and a student that does
    not."""
    here = [f"model.path={tiny_model_dir}", f"problems.dataset={ROWS}", "engine=hf"]
    pair = [f"model.thinking={switch(student)}", f"{key}={switch(teacher)}"]
    recipe = build(Recipe, load_recipe("opsd_gsm8k", [*here, "problems.subset=null", *pair]))
    said = shown(recipe)
    assert f"thinking: student {word(student)}, view 'solution' {word(teacher)}" in said
    assert said.count(SILENT) == (not student) + (not teacher)


@pytest.mark.parametrize(
    ("student", "modes"),
    [
        ("null", "student as the template has it, view 'solution' as the template has it"),
        ("false", "student off, view 'solution' off"),
    ],
)
def test_a_view_without_a_mode_has_the_students(
    tiny_model_dir: Path, student: str, modes: str
) -> None:
    small = [f"model.path={tiny_model_dir}", f"problems.dataset={ROWS}", "engine=hf"]
    free = [f"model.thinking={student}", "teacher.thinking=null", "problems.subset=null"]
    assert f"thinking: {modes}" in shown(build(Recipe, load_recipe("opsd_gsm8k", [*small, *free])))


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_with_nothing_in_view_the_modes_alone_part_the_two(
    tiny_model_dir: Path, tmp_path: Path, student: bool, teacher: bool
) -> None:
    """The same weights say the same of the same prompt, and another thing in another mode."""
    term = {"loss": {"name": "Distill", "target": "plain", "divergence": "ForwardKL"}}
    changes = {
        "model": {"path": str(tiny_model_dir), "thinking": student},
        "teacher": {"views": {"plain": "Plain"}, "thinking_by_view": {"plain": teacher}},
        "terms": {"distil": term},
        "steps": 1,
        "benchmarks": {},
        "checkpoint": {"every": 0},
    }
    run(tiny_model_dir, tmp_path / "run", **changes)
    logged = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (update,) = (row for row in map(json.loads, logged) if row["kind"] == "update")
    loss = update["metrics"]["loss/distil"]
    assert loss == pytest.approx(0, abs=1e-5) if student == teacher else loss > 0.01
