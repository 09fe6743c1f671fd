"""What a context does by itself: no reference, another problem's, a wrong answer. arXiv 2609.20612,
2608.09228."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd.config import build, load_recipe
from opd.objective.loss import Distill
from opd.privileged import Group
from opd.recipe import Recipe
from opd.types import Rollout, Verdict
from tests.students import distance, draw_trajectories, recipe_terms, update_of

CONTROLS = ("opsd_reference_free", "opsd_other_problem", "opsd_wrong_answer")


@pytest.mark.parametrize("name", CONTROLS)
def test_no_control_shows_the_problems_own_reference(name: str) -> None:
    recipe = build(Recipe, load_recipe(name, ["problems.limit=60"]))
    problems = recipe.problems.problems()
    recipe.teacher.open_views(problems)
    (view,) = recipe.teacher.views.values()
    references = []
    for problem in problems:
        rollout = Rollout(problem.prompt, (1,), (2,), (0.0,), 0, "stop", "")
        group = Group(problem, (rollout,), (Verdict("fail", 0.0),))
        messages = view.messages(group, 0)
        assert messages is not None
        question, _, reference = messages[-1].content.partition(" ref: ")
        assert question == problem.prompt.question
        assert reference not in (problem.privileged.solution, problem.privileged.answer)
        references.append(reference)
    shown = {"opsd_other_problem": "solution", "opsd_wrong_answer": "answer"}.get(name)
    pool = {""} if shown is None else {getattr(p.privileged, shown) for p in problems}
    assert set(references) <= pool


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_that_is_shown_the_solution_is_the_method(
    tiny_model_dir: Path, name: str
) -> None:
    terms, base = recipe_terms(name), recipe_terms("opsd")
    (view,) = terms["distil"].views
    rollouts = draw_trajectories()
    renamed = draw_trajectories(view)
    loss, found = update_of(tiny_model_dir, terms, renamed)
    expected_loss, expected = update_of(tiny_model_dir, base, rollouts)
    assert loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6


def test_what_no_student_can_learn_of_a_context_that_it_does_not_see() -> None:
    """The mean divergence from what each reference says is that from their mean, plus their mutual
    information, which hangs on no student: what a control leaves behind."""
    loss = recipe_terms("opsd_other_problem")["distil"].loss
    assert isinstance(loss, Distill)
    first, second, student = (
        torch.tensor([row], dtype=torch.float64) for row in ((0.9, 0.1), (0.1, 0.9), (0.7, 0.3))
    )
    mean = (first + second) / 2

    def gap(target: torch.Tensor, from_: torch.Tensor) -> float:
        return loss.divergence(from_.log(), target.log()).item()

    assert (gap(first, student) + gap(second, student)) / 2 == pytest.approx(0.455240901, abs=1e-6)
    assert gap(mean, student) == pytest.approx(0.087176674, abs=1e-6)
    assert (gap(first, mean) + gap(second, mean)) / 2 == pytest.approx(0.368064207, abs=1e-6)
