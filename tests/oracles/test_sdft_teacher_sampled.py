"""What the side that reads a demonstration writes: nothing is corrected, and nothing to read."""

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

RECIPE = build(Recipe, load_recipe("sdft_teacher_sampled"))


def test_written_behind_another_prompt_nothing_is_corrected() -> None:
    """With log-probs of the same prompt, ratios (1.5, 3, 0.5) would count 1.333 on average."""
    sampled = torch.tensor([-1.0, -2.0, -0.5])
    ours = sampled + torch.tensor([1.5, 3.0, 0.5]).log()
    factor = TruncatedImportance(cap=2.0)
    assert factor(ours, sampled).mean().item() == pytest.approx(1.333333, abs=1e-6)
    assert factor(ours, sampled * float("nan")).tolist() == [1, 1, 1]


def test_nothing_else_differs() -> None:
    same = ["source=OnPolicy", "output=x"]
    assert build(Recipe, load_recipe("sdft_teacher_sampled", same)) == build(
        Recipe, load_recipe("sdft", same)
    )


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
