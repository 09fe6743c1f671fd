"""Numbers of arXiv 2605.15113's outcome step, and the plain policy as its own teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.config import build, load_recipe
from opd.learner.batch import pack
from opd.objective.sequence_loss import SuccessClassifier
from opd.recipe import Recipe
from opd.teacher.score import Teacher
from opd.teacher.view import Plain
from opd.teacher.weights import Live
from tests.batches import batch_of, seen_of
from tests.students import (
    distance,
    draw_trajectories,
    gradients,
    open_student,
    recipe_terms,
    update_of,
)


def outcome_loss(log_ratios: list[float]) -> tuple[float, list[float]]:
    """One success and two failures, whose tokens add up to these log ratios; the recipe's mean over
    responses, and its gradient in the log-prob of each response."""
    term = recipe_terms("vpd")["consider"]
    assert isinstance(term.loss, SuccessClassifier)
    batch = batch_of([2, 1, 1], success=[True, False, False])
    first, *others = log_ratios
    values = torch.tensor([first - 1.0, 1.0, *others], requires_grad=True)
    seen = {"plain": seen_of([0.0] * 4)}
    loss, _ = term.loss.sequences(values, batch, seen)
    weight = torch.ones(4)
    mean = term.numerator(loss, weight, batch, 8) / term.mass(weight, batch, 8)
    (gradient,) = torch.autograd.grad(mean, values)
    return mean.item(), gradient[[0, 2, 3]].tolist()


def test_the_outcome_loss_and_its_gradient() -> None:
    loss, gradient = outcome_loss([4.0, -2.0, 0.0])
    assert loss == pytest.approx(1.153109021, abs=1e-6)
    assert gradient == pytest.approx([-0.043782350, 0.020669121, 0.023128508], abs=1e-6)


def test_policies_that_agree_cannot_tell_responses_apart() -> None:
    assert outcome_loss([0.0, 0.0, 0.0])[0] == pytest.approx(1.386294361, abs=1e-6)


def test_a_constant_in_all_ratios_changes_nothing() -> None:
    shifted = outcome_loss([7.0, 1.0, 3.0])
    assert shifted[0] == pytest.approx(1.153109021, abs=1e-6)
    assert shifted[1] == pytest.approx(outcome_loss([4.0, -2.0, 0.0])[1], abs=1e-6)


def test_five_steps_follow_and_one_considers() -> None:
    terms = recipe_terms("vpd")
    active = {n: [t.coefficient.at(step, 150) for step in range(12)] for n, t in terms.items()}
    assert active["follow"] == [1, 1, 1, 1, 1, 0] * 2
    assert active["consider"] == [0, 0, 0, 0, 0, 1] * 2


def test_a_lagging_policy_is_followed_and_the_prior_is_the_student(tiny_model_dir: Path) -> None:
    """Both behind the same prompt: after a step only the prior has moved all the way."""
    recipe = build(Recipe, load_recipe("vpd"))
    learner = open_student(tiny_model_dir, {"follow": recipe_terms("vpd")["follow"]})
    recipe.teacher.setup(learner)
    [weight, *_] = learner.model.parameters()
    start = weight.detach().clone()
    with torch.no_grad():
        weight += 1
    recipe.teacher.follow(learner)
    moved = {}
    for view in ("sibling", "plain"):
        with recipe.teacher.weights_of(view).scoring(learner) as model:
            moved[view] = (next(model.parameters()) - start).mean().item()
    assert moved == pytest.approx({"sibling": 0.01, "plain": 1.0}, abs=1e-4)


def test_feedback_that_says_nothing_teaches_nothing(tiny_model_dir: Path) -> None:
    """The same prompt and the same weights on both sides."""
    terms = {"follow": recipe_terms("vpd")["follow"]}
    learner = open_student(tiny_model_dir, terms)
    blank = [replace(t, views={"sibling": t.rollout.prompt_ids}) for t in draw_trajectories()]
    teacher = Teacher(weights=Live(), views={"sibling": Plain()})
    batches = pack(blank, tokens_per_batch=10_000, packing=False, pad_id=0)
    update = learner.update(batches, teacher.score(blank, batches, ("sibling",), learner), 0)
    assert update.metrics["loss/follow"] == pytest.approx(0, abs=1e-6)
    assert max(float(g.abs().max()) for g in gradients(learner).values()) < 1e-6


def test_a_policy_that_never_considers_only_follows_its_sibling(tiny_model_dir: Path) -> None:
    """The method without the outcome step is its base by reverse KL, uncorrected."""
    neutral = recipe_terms("vpd", "terms.consider.coefficient=0", "terms.follow.coefficient=1")
    loss = "terms.distil.loss"
    base = recipe_terms("sdpo", f"{loss}.divergence=ReverseKL", f"{loss}.correction=null")
    siblings = draw_trajectories("sibling")
    expected_loss, expected = update_of(tiny_model_dir, base, siblings, step=5)
    found_loss, found = update_of(tiny_model_dir, neutral, siblings, step=5)
    assert found_loss == pytest.approx(expected_loss) and distance(found, expected) < 1e-6
    followed = neutral["follow"].loss
    assert followed == recipe_terms("vpd")["follow"].loss == base["distil"].loss
