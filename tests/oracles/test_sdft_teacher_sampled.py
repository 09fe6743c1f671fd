"""What the side that reads a demonstration writes: the method's numbers, and nothing to read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd.config import build, load_recipe
from opd.objective.correction import TruncatedImportance
from opd.recipe import Recipe
from opd.rollout.chat import Chat
from opd.rollout.engine import Sampling
from opd.rollout.hf import HF
from opd.rollout.sampler import Sampler
from opd.rollout.source import InView, OnPolicy
from opd.teacher.view import Plain
from opd.teacher.weights import EMA
from tests.batches import batch_of, scores_of
from tests.students import open_student

RECIPE = build(Recipe, load_recipe("sdft_teacher_sampled"))


def test_the_first_tokens_are_skipped_and_sequences_count_alike() -> None:
    term = RECIPE.terms["distil"]
    batch, scores = batch_of([5, 4]), {"demonstration": scores_of(9)}
    losses = torch.tensor([9, 9, 9, 0.4, 0.2, 9, 9, 9, 0.6])
    weight = term.weight(batch, scores)
    total = term.numerator(losses, weight, batch, 56) / term.mass(weight, batch, 56)
    assert total.item() == pytest.approx(0.45, abs=1e-6)
    by_token = build(Recipe, load_recipe("sdft_teacher_sampled", ["terms.distil.average=token"]))
    term = by_token.terms["distil"]
    total = term.numerator(losses, weight, batch, 56) / term.mass(weight, batch, 56)
    assert total.item() == pytest.approx(0.40, abs=1e-6)


def test_written_behind_another_prompt_nothing_is_corrected() -> None:
    """With log-probs of the same prompt, ratios (1.5, 3, 0.5) would count 1.333 on average."""
    sampled = torch.tensor([-1.0, -2.0, -0.5])
    ours = sampled + torch.tensor([1.5, 3.0, 0.5]).log()
    factor = TruncatedImportance(cap=2.0)
    assert factor(ours, sampled).mean().item() == pytest.approx(1.333333, abs=1e-6)
    assert factor(ours, sampled * float("nan")).tolist() == [1, 1, 1]


def test_the_teacher_lags(tiny_model_dir: Path) -> None:
    weights = RECIPE.teacher.weights
    assert isinstance(weights, EMA) and weights.decay == 0.99
    learner, lagging = open_student(tiny_model_dir), EMA(decay=0.99)
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


def test_a_view_of_nothing_is_the_students_own_sampling(tiny_model_dir: Path) -> None:
    engine = HF()
    engine.open(str(tiny_model_dir), dtype="float32", max_length=512, seed=0)
    sampler = Sampler(engine, Chat.open(str(tiny_model_dir)), 512, seed=0)
    greedy = Sampling(max_response_tokens=6, temperature=0.0)
    problems = RECIPE.problems.problems()[:3]
    source = InView(view=Plain(), learned="as_drawn")
    assert source.collect(problems, sampler, greedy, 0) == OnPolicy().collect(
        problems, sampler, greedy, 0
    )
    engine.close()
