"""A lagging copy that reads a demonstration: the numbers of arXiv 2601.19897, and its base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.config import build, load_recipe
from opd.objective.sequence_loss import MeanCorrected
from opd.recipe import Recipe
from opd.teacher.weights import EMA, Frozen
from tests.batches import batch_of, scores_of, seen_of
from tests.rows import D0_STUDENT, D0_TEACHER, pulled
from tests.runs import trained
from tests.students import (
    distance,
    draw_trajectories,
    open_student,
    recipe_terms,
    update_of,
)


def built(name: str, *overrides: str) -> Recipe:
    return build(Recipe, load_recipe(name, overrides))


def corrected(name: str) -> MeanCorrected:
    loss = recipe_terms(name)["distil"].loss
    assert isinstance(loss, MeanCorrected)
    return loss


@pytest.mark.parametrize(
    ("name", "value", "gradient"),
    [
        ("sdft", 0.183786897, (-0.3, 0.2, 0.1)),
        ("sdft_reverse", 0.192041993, (-0.30066311, 0.20044207, 0.10022104)),
    ],
)
def test_one_row(name: str, value: float, gradient: tuple[float, ...]) -> None:
    found, pull, _ = pulled(corrected(name).loss, D0_STUDENT, demonstration=D0_TEACHER)
    assert found == pytest.approx(value, abs=1e-8)
    assert pull == pytest.approx(gradient, abs=1e-7)


def test_the_reverse_direction_is_all_that_differs() -> None:
    back = "terms.distil.loss.loss.divergence=ForwardKL"
    assert built("sdft_reverse", back, "output=x") == built("sdft", "output=x")


@pytest.mark.parametrize(("average", "mean"), [("sequence", 0.45), ("token", 0.40)])
def test_the_first_tokens_are_skipped(average: str, mean: float) -> None:
    """The recipe lets sequences count alike."""
    assert recipe_terms("sdft")["distil"].average == "sequence"
    term = recipe_terms("sdft", f"terms.distil.average={average}")["distil"]
    batch, losses = batch_of([5, 4]), torch.tensor([9, 9, 9, 0.4, 0.2, 9, 9, 9, 0.6])
    weight = term.weight(batch, {"demonstration": scores_of(9)})
    total = term.numerator(losses, weight, batch, 56) / term.mass(weight, batch, 56)
    assert total.item() == pytest.approx(mean, abs=1e-6)


def test_one_factor_a_response() -> None:
    """Ratios (1.5, 3, .5), cut at 2, count 1.333 on average; of one token each, what they are."""
    sampled = torch.tensor([-1.0, -2.0, -0.5])
    trained_logprob = sampled + torch.tensor([1.5, 3.0, 0.5]).log()
    student = {"student": seen_of(trained_logprob.tolist())}
    losses = torch.tensor([0.3, 0.6, 0.9])

    def found(*lengths: int) -> list[float]:
        batch = batch_of(lengths, sampled_logprob=sampled)
        return corrected("sdft").sequences(losses, batch, student)[0].tolist()

    assert found(3) == pytest.approx([0.4, 0.8, 1.2], abs=1e-6)
    assert found(1, 1, 1) == pytest.approx([0.45, 1.2, 0.45], abs=1e-6)
    assert found(1, 2) == pytest.approx([0.45, 0.75, 1.125], abs=1e-6)


def test_the_teacher_lags(tiny_model_dir: Path) -> None:
    lagging = built("sdft").teacher.weights
    assert isinstance(lagging, EMA)
    learner = open_student(tiny_model_dir)
    lagging.setup(learner)
    with torch.no_grad():
        for parameter in lagging.average.parameters():
            parameter.zero_()
        for parameter in learner.model.parameters():
            parameter.fill_(1.0)
    for _ in range(3):
        lagging.follow(learner)
    for parameter in lagging.average.parameters():
        assert torch.allclose(parameter, torch.full_like(parameter, 0.029701), atol=1e-6)


def test_responses_shorter_than_the_skip_teach_nothing(tiny_model_dir: Path) -> None:
    trajectories = draw_trajectories("demonstration")
    shortest = [each for each in trajectories if len(each.rollout.token_ids) == 3]
    terms = recipe_terms("sdft")
    loss, found = update_of(tiny_model_dir, terms, shortest)
    assert shortest and loss == 0 and all(bool((pull == 0).all()) for pull in found.values())
    both = update_of(tiny_model_dir, terms, trajectories)
    without = update_of(tiny_model_dir, terms, [t for t in trajectories if t not in shortest])
    assert both[0] == pytest.approx(without[0]) and distance(both[1], without[1]) < 1e-5


def test_a_factor_of_a_response_is_one_of_its_whole_gradient(tiny_model_dir: Path) -> None:
    """That of the policy that is trained over the one that drew it."""
    (one, *_) = (t for t in draw_trajectories("demonstration") if len(t.rollout.token_ids) == 9)
    terms = recipe_terms("sdft", "terms.distil.weights=[]")
    plain = {"distil": replace(terms["distil"], loss=corrected("sdft").loss)}
    loss, found = update_of(tiny_model_dir, terms, [one])
    alone, expected = update_of(tiny_model_dir, plain, [one])
    scaled = {name: pull * loss / alone for name, pull in expected.items()}
    # A random model draws the tokens far less often than these log-probs say.
    assert 0 < loss / alone < 0.5 and distance(found, scaled) < 1e-5


def test_neutral_it_is_its_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Nothing skipped or corrected, tokens alike, a teacher that stays: no clip, the solution."""
    overrides = ("terms.distil.weights.0.skip=0", "terms.distil.average=token")
    term = recipe_terms("sdft", *overrides)["distil"]
    terms = {"distil": replace(term, loss=corrected("sdft").loss)}
    still = built("sdft", "teacher.weights.decay=1").teacher.weights
    found = trained(tiny_model_dir, tmp_path / "found", terms, still, "demonstration")
    plain = recipe_terms("opsd", "terms.distil.loss.clip=none")
    expected = trained(tiny_model_dir, tmp_path / "expected", plain, Frozen(), "solution")
    assert distance(found, expected) == 0
    own = built("sdft").teacher.weights
    method = trained(tiny_model_dir, tmp_path / "own", recipe_terms("sdft"), own, "demonstration")
    assert distance(method, expected) > 1e-4
