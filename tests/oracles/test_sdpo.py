"""A sibling's success teaches the other attempts: the numbers of arXiv 2601.20802, and its base."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.config import build, load_recipe
from opd.objective.logits import Logits
from opd.objective.loss import Distill
from opd.recipe import Recipe
from opd.teacher.weights import EMA, Frozen
from tests.rows import logs, pulled
from tests.runs import trained
from tests.students import distance, draw_trajectories, open_student, recipe_terms, update_of

LOSS = "terms.distil.loss"
STUDENT, TEACHER = (0.5, 0.3, 0.1, 0.06, 0.04), (0.2, 0.3, 0.4, 0.06, 0.04)


def distilled(*overrides: str) -> Distill:
    loss = recipe_terms("sdpo", *(f"{LOSS}.{override}" for override in overrides))["distil"].loss
    assert isinstance(loss, Distill)
    return loss


@pytest.mark.parametrize(
    ("divergence", "tail", "renormalised", "full"),
    [
        ("ForwardKL", 0.274887220, 0.103487336, 0.371259598),
        ("ReverseKL", 0.274887220, 0.102678078, 0.319515930),
        ("JSD", 0.066414314, 0.025547195, 0.081393347),
    ],
)
def test_the_students_two_likeliest_entries(
    divergence: str, tail: float, renormalised: float, full: float
) -> None:
    for expected, *support in (
        (tail, "support.size=2"),
        (renormalised, "support.size=2", "support.rest=renormalise"),
        (full, "support.size=5"),
    ):
        loss = distilled(f"divergence={divergence}", *support)
        value, _, _ = pulled(loss, STUDENT, sibling=TEACHER)
        assert value == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(math.e, 0.132828629), (1.5, 0.099621472), (1.0, 0.066414314), (0.5, 0.033207157)],
)
def test_the_ratio_is_cut_at_two(ratio: float, expected: float) -> None:
    student, taken = logs(STUDENT), torch.tensor([0])
    sampled = student[:, 0] - math.log(ratio)
    teacher = {"sibling": Logits(logs(TEACHER))}
    loss, _ = distilled("support.size=2").rows(Logits(student), taken, sampled, teacher)
    assert loss.item() == pytest.approx(expected, abs=1e-8)


def test_a_twentieth_of_the_way_after_every_step(tiny_model_dir: Path) -> None:
    """From 1 towards 2, at the paper's rate."""
    slower, paper = (weights(*rate) for rate in ((), ("teacher.weights.decay=0.95",)))
    assert slower == EMA(decay=0.99)
    learner = open_student(tiny_model_dir)
    paper.setup(learner)
    with torch.no_grad():
        for theirs, mine in zip(
            paper.average.parameters(), learner.model.parameters(), strict=True
        ):
            theirs.fill_(1.0)
            mine.fill_(2.0)
    seen = []
    for _ in range(2):
        paper.follow(learner)
        seen.append(next(paper.average.parameters()).flatten()[0].item())
    assert seen == pytest.approx([1.05, 1.0975], abs=1e-6)


def weights(*overrides: str) -> EMA:
    found = build(Recipe, load_recipe("sdpo", overrides)).teacher.weights
    assert isinstance(found, EMA)
    return found


def test_a_group_without_a_success_teaches_nothing(tiny_model_dir: Path) -> None:
    blind = [replace(each, views={}) for each in draw_trajectories()]
    loss, found = update_of(tiny_model_dir, recipe_terms("sdpo"), blind)
    assert loss == 0 and all(bool((pull == 0).all()) for pull in found.values())
    _, seeing = update_of(tiny_model_dir, recipe_terms("sdpo"), draw_trajectories("sibling"))
    assert max(float(pull.abs().max()) for pull in seeing.values()) > 1e-4


def test_neutral_it_is_its_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The whole vocabulary, nothing corrected, a teacher that stays, and the solution to read."""
    neutral = (f"{LOSS}.support=Full", f"{LOSS}.correction=null", f"{LOSS}.divergence=ForwardKL")
    still, folder = weights("teacher.weights.decay=1"), tiny_model_dir
    found = trained(folder, tmp_path / "a", recipe_terms("sdpo", *neutral), still, "sibling")
    plain = recipe_terms("opsd", f"{LOSS}.clip=none")
    expected = trained(folder, tmp_path / "b", plain, Frozen(), "solution")
    assert distance(found, expected) == 0
    method = trained(folder, tmp_path / "c", recipe_terms("sdpo"), weights(), "sibling")
    assert distance(method, expected) > 1e-4
