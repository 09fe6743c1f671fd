"""A log-ratio as a token's reward, bounded from below, in two phases: arXiv 2603.11137. Worked by
hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.loss import PolicyGradient
from opd.objective.schedule import Constant
from opd.objective.term import Term
from opd.privileged import Trajectory
from tests.batches import batch_of, scores_of, seen_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of

FLOOR = -2.558427881
"""log 0.1 / (1 - 0.1)."""
PHASES = ("explore", "refine")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("gap", "reward"), [(-20.0, FLOOR), (-2.5, -2.5), (0.0, 0.0), (3.0, 3.0)])
def test_reward_of_a_token(phase: str, gap: float, reward: float) -> None:
    loss = recipe_terms("reopold")[phase].loss
    assert isinstance(loss, PolicyGradient)
    logprob = torch.tensor([-1.0], requires_grad=True)
    batch = batch_of([1], sampled_logprob=logprob.detach())
    loss.tokens(logprob, batch, {"plain": seen_of([gap - 1])})[0].sum().backward()
    assert logprob.grad is not None and -logprob.grad.item() == pytest.approx(reward, abs=1e-6)


def test_the_first_phase_drops_what_would_meet_the_floor() -> None:
    """The mean is over the tokens that are left."""
    term = recipe_terms("reopold")["explore"]
    gaps = [-20.0, -2.55843, -2.55842, 3.0, 0.5]
    batch = batch_of([5], sampled_logprob=torch.full((5,), -1.0))
    scores = {
        "plain": scores_of(
            5, logprob=[gap - 1 for gap in gaps], present=[True, True, True, True, False]
        )
    }
    weight = term.weight(batch, scores)
    assert weight.tolist() == [0, 0, 1, 1, 0]
    rewards = torch.tensor(gaps)
    mean = term.numerator(rewards, weight, batch, 8) / term.mass(weight, batch, 8)
    assert mean.item() == pytest.approx((3 - 2.55842) / 2, abs=1e-6)


def test_the_phases_change_at_step_fifty() -> None:
    at = {name: term.coefficient for name, term in recipe_terms("reopold").items()}
    assert [at["explore"].at(step, 150) for step in (0, 49, 50, 149)] == [1, 1, 0, 0]
    assert [at["refine"].at(step, 150) for step in (0, 49, 50, 149)] == [0, 0, 1, 1]


# On a real small batch.


def rollouts() -> list[Trajectory]:
    """All with a teacher, and with the student itself as a view."""
    return [
        replace(each, views={**each.views, "itself": each.rollout.prompt_ids})
        for each in draw_trajectories("plain")
        if each.views
    ]


def phase(name: str, *overrides: str) -> dict[str, Term]:
    changes = [f"terms.{name}.{change}" for change in overrides]
    return {name: replace(recipe_terms("reopold", *changes)[name], coefficient=Constant(value=1))}


@pytest.mark.parametrize(
    ("name", "neutral", "bounded"),
    [
        ("explore", "weights.0.beyond=-99", "weights.0.beyond=-4"),
        ("refine", "weights.0.share=1", "weights.0.share=0.2"),
    ],
)
def test_a_floor_that_nothing_reaches_and_all_tokens_are_no_phase(
    tiny_model_dir: Path, name: str, neutral: str, bounded: str
) -> None:
    free = "loss.token_credit.0.floor=-99"
    _, found = update_of(tiny_model_dir, phase(name, free, neutral), rollouts())
    _, expected = update_of(tiny_model_dir, recipe_terms("tmopd"), rollouts())
    assert distance(found, expected) < 1e-5
    _, fewer = update_of(tiny_model_dir, phase(name, free, bounded), rollouts())
    assert distance(fewer, expected) > 1e-3
    _, floored = update_of(
        tiny_model_dir, phase(name, neutral, "loss.token_credit.0.floor=-3"), rollouts()
    )
    assert distance(floored, expected) > 1e-3


def test_the_second_phase_hangs_on_no_split(tiny_model_dir: Path) -> None:
    terms = phase("refine")
    loss, whole = update_of(tiny_model_dir, terms, rollouts())
    cut_loss, cut = update_of(tiny_model_dir, terms, rollouts(), tokens_per_batch=1)
    assert cut_loss == pytest.approx(loss, rel=1e-5) and distance(cut, whole) < 1e-5
