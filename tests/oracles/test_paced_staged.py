"""Two whole stages, each with text and optimizer of its own: arXiv 2603.11178."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opd.config import build, dump, load_recipe
from opd.learner.extrapolate import FreshMoments, Stay
from opd.objective.loss import Distill
from opd.recipe import Recipe
from opd.rollout.source import InView, Mixed, OnPolicy
from tests.rows import A_STUDENT, A_TEACHER, pulled
from tests.runs import run
from tests.students import distance, open_student, recipe_terms


@pytest.mark.parametrize(
    ("step", "own", "stage", "nats"),
    [
        (0, 0, "cover", 0.0992728),
        (74, 0, "cover", 0.0992728),
        (75, 1, "sharpen", 0.1166225),
        (149, 1, "sharpen", 0.1166225),
    ],
)
def test_each_stage_has_its_text_and_its_divergence(
    step: int, own: float, stage: str, nats: float
) -> None:
    """Forward KL on the teacher's texts, reverse KL on the student's."""
    recipe = build(Recipe, load_recipe("paced_staged"))
    source = recipe.source
    assert isinstance(source, Mixed) and source.share.at(step, 150) == own
    assert isinstance(source.first, OnPolicy) and isinstance(source.second, InView)
    assert recipe.extrapolation == FreshMoments(at_steps=(75,))
    active = [name for name, term in recipe.terms.items() if term.coefficient.at(step, 150)]
    assert active == [stage]
    loss = recipe.terms[stage].loss
    assert isinstance(loss, Distill)
    assert pulled(loss, A_STUDENT, solution=A_TEACHER)[0] == pytest.approx(nats, abs=1e-6)


def stepped(folder: Path, extrapolation: Stay | FreshMoments) -> dict[str, torch.Tensor]:
    """The last of three moves; two gradients of ones, and then one of minus a thousandth."""
    learner = open_student(folder)
    for done, slope in ((1, 1.0), (2, 1.0), (3, -1e-3)):
        for parameter in learner.parameters:
            parameter.grad = torch.full_like(parameter, slope)
        for group in learner.optimizer.param_groups:
            group |= {"lr": 1e-2, "weight_decay": 0.0}
        before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
        learner.optimizer.step()
        extrapolation(done, learner, lambda: 0.0)
    return {name: p.detach() - before[name] for name, p in learner.model.named_parameters()}


def test_fresh_moments_take_the_first_step_anew(tiny_model_dir: Path) -> None:
    """Adam's first step is the learning rate against the gradient's sign, whatever its size; with
    moments of earlier and larger gradients it still goes the old way."""
    fresh = stepped(tiny_model_dir, FreshMoments(at_steps=(2,)))
    assert all(
        torch.allclose(move, torch.full_like(move, 1e-2), rtol=1e-3) for move in fresh.values()
    )
    for kept in (Stay(), FreshMoments(at_steps=(1, 3))):
        assert all((move < 0).all() for move in stepped(tiny_model_dir, kept).values())


def trained(folder: Path, output: Path, name: str, *overrides: str) -> dict[str, torch.Tensor]:
    """The weights after four steps of a recipe, whose stages change in the middle."""
    at = ("terms.cover.coefficient.at_steps=[2]", "terms.sharpen.coefficient.at_steps=[2]")
    recipe = load_recipe(name, [*at, "pass_rate.at_steps=[2]", "pass_rate.rollouts=2", *overrides])
    changes: dict[str, Any] = {
        "terms": dump(recipe_terms(name, *at)),
        "benchmarks": {},
        "checkpoint": {"every": 0},
    }
    for key in ("pass_rate", "source", "extrapolation"):
        if key in recipe:
            changes[key] = recipe[key]
    views = {"solution": {"name": "Solution", "template": "$question $solution"}}
    changes["source"] = changes.get("source", "OnPolicy")
    run(folder, output, teacher={"weights": "Frozen", "views": views}, **changes)
    return load_file(output / "model" / "model.safetensors")


def test_with_own_text_and_one_optimizer_it_is_the_base_method(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    neutral = ("source.share=1", "extrapolation=Stay")
    found = trained(tiny_model_dir, tmp_path / "neutral", "paced_staged", *neutral)
    base = trained(tiny_model_dir, tmp_path / "base", "paced")
    assert all(torch.equal(found[name], base[name]) for name in base)
    fresh = ("source.share=1", "extrapolation.at_steps=[2]")
    other = trained(tiny_model_dir, tmp_path / "fresh", "paced_staged", *fresh)
    assert distance(other, base) > 1e-6


def test_a_run_changes_from_the_teachers_text_to_its_own(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    switch = ("source.share.at_steps=[2]", "extrapolation.at_steps=[2]")
    trained(tiny_model_dir, tmp_path / "run", "paced_staged", *switch)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    updates = [row["metrics"] for row in rows if row["kind"] == "update"]
    assert [metrics["schedule/source.share"] for metrics in updates] == [0, 0, 1, 1]
    # Nobody has drawn the teacher's text behind the student's prompt, so nothing is to compare.
    assert ["mismatch/mean" in metrics for metrics in updates] == [False, False, True, True]
