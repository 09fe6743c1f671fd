"""A reviser that teaches: half of each divergence on the entries that it holds likeliest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opd.config import ROOT, build, load_recipe
from opd.learner.batch import build_context
from opd.objective.logits import Logits
from opd.objective.loss import Distill
from opd.objective.support import TopK
from opd.recipe import Recipe
from opd.rollout.source import Both, InView
from opd.teacher.weights import Frozen, Periodic
from tests.students import distance, draw_trajectories, recipe_terms, update_of

TEACHER, STUDENT = (0.7, 0.2, 0.1), (0.4, 0.4, 0.2)
RECIPE = build(Recipe, load_recipe("sdzero"))


def loss(name: str) -> float:
    """A term's share in the loss of one token, two entries of which the teacher holds likeliest."""
    term = RECIPE.terms[name]
    distil = term.loss
    assert isinstance(distil, Distill) and isinstance(distil.support, TopK)
    two = replace(distil, support=replace(distil.support, size=2))
    student, teacher = (Logits(torch.tensor([side]).log()) for side in (STUDENT, TEACHER))
    zero = torch.zeros(1)
    found, _ = two.rows(student, zero.long(), zero, {"attempt": teacher})
    return term.coefficient.at(0, 75) * found.item()


def test_half_of_each_divergence() -> None:
    assert 2 * loss("forward") == pytest.approx(0.163440982, abs=1e-6)
    assert 2 * loss("reverse") == pytest.approx(0.184548732, abs=1e-6)
    assert loss("forward") + loss("reverse") == pytest.approx(0.173994857, abs=1e-6)


def test_lengths_of_an_attempt_that_is_scored() -> None:
    """10 tokens of prompt, 6 of response, 4 between: the places 20 to 25 of 26 are compared."""
    context = build_context([tuple(range(20))], [tuple(range(6))], packing=False, pad_id=0)
    assert context.input_ids.shape == (1, 26)
    assert context.predict_at.tolist() == [19, 20, 21, 22, 23, 24]


def test_the_teacher_speaks_as_it_has_learned_to() -> None:
    """Both phases read the same cues, and the second starts where the first ends."""
    first = build(Recipe, load_recipe("sdzero_revise"))
    assert isinstance(first.source, Both) and isinstance(first.source.first, InView)
    assert RECIPE.teacher.views == {"attempt": first.source.first.view}
    assert RECIPE.model.path == f"{first.output}/model"


def test_all_of_one_divergence_over_the_vocabulary_is_its_base(tiny_model_dir: Path) -> None:
    whole = [f"terms.{name}.loss.support.size=9999" for name in RECIPE.terms]
    shares = ["terms.forward.coefficient=1", "terms.reverse.coefficient=0"]
    neutral = recipe_terms("sdzero", *whole, *shares)
    plain = recipe_terms("opsd", "terms.distil.loss.clip=none")
    expected_loss, expected = update_of(tiny_model_dir, plain, draw_trajectories("solution"))
    attempts = draw_trajectories("attempt")
    loss, found = update_of(tiny_model_dir, neutral, attempts)
    assert loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6
    assert distance(update_of(tiny_model_dir, RECIPE.terms, attempts)[1], expected) > 1e-2


def test_the_teacher_stays_unless_it_is_told_to_follow() -> None:
    """As the recipe's header says, within its steps."""
    assert isinstance(RECIPE.teacher.weights, Frozen)
    told = build(Recipe, load_recipe("sdzero", ["teacher.weights={name: Periodic, every: 25}"]))
    assert told.teacher.weights == Periodic(every=25) and told.steps > 25


def test_the_script_names_what_is_there() -> None:
    """What one of its commands leaves behind is where the next one looks for it."""
    script = (ROOT / "scripts" / "sd_zero.sh").read_text()
    revise, teach = (load_recipe(name) for name in ("sdzero_revise", "sdzero"))
    own = re.findall(r"^own=(\S+)$", script, re.MULTILINE)
    assert "opd sample grpo" in script and '--to "$own"' in script
    assert own == list({side[read]["path"] for side in sides(revise) for read in ("of", "answers")})
    steps = re.findall(r"^opd train (\w+)", script, re.MULTILINE)
    assert steps == ["sdzero_revise", "sdzero"]
    assert teach["model"] == {"path": f"{revise['output']}/model"}


def sides(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The two sources of which one makes one stage."""
    return [recipe["source"][name] for name in ("first", "second")]
