"""The shortest success is trained on, the shortest failure shown: arXiv 2609.37915."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.config import build, load_recipe
from opd.privileged import Group, Privileged, Problem
from opd.recipe import Recipe
from opd.types import Message, Prompt, Rollout, Verdict
from tests.students import distance, draw_trajectories, recipe_terms, update_of

PROMPT = Prompt("p", (Message("user", "q"),))


def group(lengths: list[int], success: str) -> Group:
    rollouts = tuple(
        Rollout(PROMPT, (1,), (2,) * n, (0.0,) * n, 0, "stop", f"{n}") for n in lengths
    )
    verdicts = tuple(Verdict("pass" if s == "T" else "fail", float(s == "T")) for s in success)
    return Group(Problem(PROMPT, Privileged()), rollouts, verdicts)


@pytest.mark.parametrize(
    ("lengths", "success", "scaffold", "context"),
    [
        ([900, 700, 850, 400], "TFTF", 850, "400"),
        ([900, 850], "TT", 850, "900"),
        ([900, 700, 850, 400], "TTTT", 400, "700"),
        ([900, 700, 850, 400], "FFTF", 850, "400"),
        ([850], "T", 850, None),
        ([900, 700, 850, 400], "FFFF", None, None),
    ],
)
def test_scaffold_and_context(
    lengths: list[int], success: str, scaffold: int | None, context: str | None
) -> None:
    recipe = build(Recipe, load_recipe("oasis"))
    attempts = group(lengths, success)
    selected = [lengths[index] for index in recipe.selection(attempts)]
    assert selected == ([] if scaffold is None else [scaffold])
    for index in recipe.selection(attempts):
        messages = recipe.teacher.views["attempt"].messages(attempts, index)
        shown = None if messages is None else messages[-1].content
        assert shown == (None if context is None else f"q ref: {context}")


def test_shown_the_solution_and_trained_on_all_it_is_its_base(tiny_model_dir: Path) -> None:
    base = recipe_terms("opsd")
    rollouts = draw_trajectories()
    renamed = draw_trajectories("attempt")
    loss, found = update_of(tiny_model_dir, recipe_terms("oasis"), renamed)
    expected_loss, expected = update_of(tiny_model_dir, base, rollouts)
    assert loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6
    neutral = build(Recipe, load_recipe("oasis", ["selection=Everything"]))
    assert neutral.selection(group([3, 2], "FT")) == {0, 1}
