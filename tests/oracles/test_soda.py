"""Pairs of another's text and the untrained student's own: the method's numbers, and its start."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from opd.config import build, load_recipe
from opd.loop import train
from opd.objective.loss import Likelihood
from opd.objective.schedule import Constant
from opd.objective.sequence_loss import Preference
from opd.objective.term import Term
from opd.objective.weight import Only
from opd.recipe import Recipe
from opd.rollout.judged import read_judged, write_judged
from opd.stored import sample
from opd.types import Verdict
from tests.batches import batch_of, seen_of
from tests.students import distance, draw_trajectories, open_student, update_of

RECIPE = build(Recipe, load_recipe("soda"))


def pair(ours: list[float], reference: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of one pair of responses of two tokens each, and its pull at their log-probs."""
    loss = RECIPE.terms["prefer"].loss
    assert isinstance(loss, Preference)
    tokens = batch_of([2, 2], group=[0, 0])
    values = torch.tensor(ours, requires_grad=True)
    found, _ = loss.sequences(values, tokens, {"plain": seen_of(reference)})
    mean = found.mean()
    (gradient,) = torch.autograd.grad(mean, values)
    return mean.detach(), gradient


def test_the_margin_of_a_pair() -> None:
    """0.1 (2 - -2) = .4."""
    loss, pull = pair([-8.0, -12.0, -14.0, -16.0], [-9.0, -13.0, -13.0, -15.0])
    assert loss.item() == pytest.approx(0.5130153, abs=1e-6)
    assert -math.log(math.expm1(loss.item())) == pytest.approx(0.4, abs=1e-6)
    assert pull.tolist() == pytest.approx([-0.0401312] * 2 + [0.0401312] * 2, abs=1e-6)


def test_a_pair_the_wrong_way_round() -> None:
    loss, _ = pair([-14.0, -16.0, -8.0, -12.0], [-13.0, -15.0, -9.0, -13.0])
    assert loss.item() == pytest.approx(0.9130153, abs=1e-6)


def test_at_the_start_it_is_likelihood_less_likelihood() -> None:
    """Nothing is preferred yet: half of beta pulls the one up and the other down."""
    loss, pull = pair([-1.0, -2.0, -3.0, -4.0], [-1.0, -2.0, -3.0, -4.0])
    assert loss.item() == pytest.approx(0.6931472, abs=1e-6)
    assert pull.tolist() == pytest.approx([-0.05, -0.05, 0.05, 0.05], abs=1e-6)


def test_at_the_start_a_real_update_is_likelihood_less_likelihood(tiny_model_dir: Path) -> None:
    """beta / 2 of each text's sum, the mean over pairs."""
    drawn = draw_trajectories()[:6]
    pairs = [
        replace(
            each,
            rollout=replace(each.rollout, prompt=drawn[place - place % 2].rollout.prompt),
            verdict=Verdict("fail" if place % 2 else "pass", 0.0),
            views={"plain": each.rollout.prompt_ids},
        )
        for place, each in enumerate(drawn)
    ]
    _, found = update_of(tiny_model_dir, RECIPE.terms, pairs)

    def likelihood(when: Literal["success", "failure"], share: float) -> Term:
        return Term(
            loss=Likelihood(),
            weights=(Only(when=when),),
            average="budget",
            coefficient=Constant(value=share * open_student(tiny_model_dir).max_response_tokens),
        )

    terms = {"up": likelihood("success", 0.05), "down": likelihood("failure", -0.05)}
    assert distance(found, update_of(tiny_model_dir, terms, pairs)[1]) < 1e-5


def test_a_run_starts_at_its_reference(tmp_path: Path) -> None:
    """The first step's loss is ln 2 for every pair, the teacher's text in the first place."""
    own = build(Recipe, load_recipe("quickstart"))
    sample(own, 4, tmp_path / "own.jsonl")
    better = [row for rows in read_judged(tmp_path / "own.jsonl").values() for row in rows]
    write_judged(tmp_path / "better.jsonl", better[::-1])
    small = ["steps=2", "problems_per_step=4", "evaluation.every=0", "model.path=data/tiny"]
    paths = [
        f"source.first.path={tmp_path / 'better.jsonl'}",
        f"source.second.path={tmp_path / 'own.jsonl'}",
        "source.second.learned=plain",
        "benchmarks={held_out: null, untouched: null}",
    ]
    train(build(Recipe, load_recipe("soda", [*small, *paths, f"output={tmp_path / 'run'}"])))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first = next(row for row in map(json.loads, lines) if row["kind"] == "update")["metrics"]
    assert first["loss/prefer"] == pytest.approx(0.6931472, abs=1e-5)
