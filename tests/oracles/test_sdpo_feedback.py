"""Feedback and a sibling in one view, a trust region, one hard problem: arXiv 2601.20802."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.config import build, load_recipe
from opd.objective.logits import Logits
from opd.objective.loss import Distill
from opd.objective.target import Interpolated
from opd.privileged import Group, Privileged, Problem
from opd.recipe import Recipe
from opd.teacher.weights import Frozen, Live
from opd.types import Message, Prompt, Rollout, Verdict
from tests.students import distance, draw_trajectories, recipe_terms, update_of

PROMPT = Prompt("p", (Message("user", "z+f"),))
TOLD = Verdict("fail", 0.0, feedback="f11z17")
PASSED = Verdict("pass", 1.0)


def shown(name: str, view: str, index: int, *verdicts: Verdict) -> str | None:
    """What the recipe's teacher reads before one of a group's attempts."""
    rollouts = tuple(
        Rollout(PROMPT, (1,), (2,), (0.0,), 0, "stop", f"try {n}") for n in range(len(verdicts))
    )
    group = Group(Problem(PROMPT, Privileged()), rollouts, verdicts)
    messages = build(Recipe, load_recipe(name)).teacher.views[view].messages(group, index)
    return None if messages is None else messages[-1].content


def test_feedback_and_sibling_stand_in_one_view() -> None:
    at = ("sdpo_feedback", "attempts")
    assert shown(*at, 0, TOLD, PASSED) == "z+f ref: f11z17;try 1"
    assert shown(*at, 0, TOLD, TOLD) == "z+f ref: f11z17"
    assert shown(*at, 1, TOLD, PASSED, PASSED) == "z+f ref: try 2"
    # Neither a success nor feedback: nothing to learn from.
    assert shown(*at, 1, TOLD, PASSED) is None
    assert shown(*at, 0, Verdict("fail", 0.0), TOLD) is None


def test_one_problem_prefers_what_worked() -> None:
    at = ("sdpo_one_problem", "attempts")
    assert shown(*at, 0, TOLD, PASSED) == "z+f ref: try 1"
    assert shown(*at, 0, TOLD, TOLD) == "z+f ref: f11z17"
    assert len(build(Recipe, load_recipe(at[0])).problems.problems()) == 1


@pytest.mark.parametrize("name", ["sdpo_feedback", "sdpo_one_problem"])
def test_with_the_siblings_prompts_it_is_its_base(tiny_model_dir: Path, name: str) -> None:
    rollouts = draw_trajectories("sibling")
    renamed = draw_trajectories("attempts")
    loss, found = update_of(tiny_model_dir, recipe_terms(name), renamed)
    expected_loss, expected = update_of(tiny_model_dir, recipe_terms("sdpo"), rollouts)
    assert loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6


def trust_region(share: float) -> Interpolated:
    loss = recipe_terms("sdpo_trust", f"terms.distil.loss.target.share={share}")["distil"].loss
    assert isinstance(loss, Distill) and isinstance(loss.target, Interpolated)
    return loss.target


def test_the_trust_region_lies_between_two_rows_of_logits() -> None:
    """A tenth of the way from (1, 0, 0) to (0, 2, 0)."""
    rows = {"sibling": [[1.0, 0.0, 0.0]], "current": [[0.0, 2.0, 0.0]]}
    teachers = {view: Logits(torch.tensor(row)) for view, row in rows.items()}
    own, ids = Logits(torch.zeros(1, 3)), torch.zeros(1, dtype=torch.long)
    found, _ = trust_region(0.1).logits(own, teachers, ids, 1.0)
    probs = found.log_probs(1.0).exp()[0].tolist()
    assert probs == pytest.approx([0.525443, 0.260927, 0.213629], abs=1e-6)


def test_the_trust_region_reads_one_prompt_with_two_weights() -> None:
    teacher = build(Recipe, load_recipe("sdpo_trust")).teacher
    assert teacher.views["sibling"] == teacher.views["current"]
    assert isinstance(teacher.weights_of("sibling"), Frozen)
    assert isinstance(teacher.weights_of("current"), Live)


def test_while_both_weights_are_the_same_it_is_its_base(tiny_model_dir: Path) -> None:
    rollouts = draw_trajectories("sibling")
    both = [
        replace(
            each,
            views={name: ids for ids in each.views.values() for name in trust_region(0.5).read},
        )
        for each in rollouts
    ]
    loss, found = update_of(tiny_model_dir, recipe_terms("sdpo_trust"), both)
    expected_loss, expected = update_of(tiny_model_dir, recipe_terms("sdpo"), rollouts)
    assert loss == pytest.approx(expected_loss, rel=1e-5) and distance(found, expected) < 1e-4
