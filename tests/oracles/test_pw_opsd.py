"""Weights by position: arXiv 2605.21606."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.weight import Position
from tests.batches import batch_of, scores_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of


def test_weights_and_their_mean() -> None:
    term = recipe_terms("pw_opsd")["distil"]
    weight = term.weight(batch_of([10]), {"solution": scores_of(10)})
    assert weight[:3].tolist() == pytest.approx([0.306893635, 0.386819143, 0.533155502], abs=1e-6)
    assert weight[-1].item() == pytest.approx(0.998874113, abs=1e-6)
    assert weight.mean().item() == pytest.approx(0.771559713, abs=1e-6)


def test_a_response_is_divided_by_its_length_and_not_by_its_weights() -> None:
    term = recipe_terms("pw_opsd")["distil"]
    batch = batch_of([10, 10])
    weight = term.weight(batch, {"solution": scores_of(20)})
    losses = torch.tensor([1.0] * 10 + [0.0] * 10)
    value = term.numerator(losses, weight, batch, 16) / term.mass(weight, batch, 16)
    assert value.item() == pytest.approx(0.771559713 / 2, abs=1e-6)


def test_weights_of_one_are_the_base_method(tiny_model_dir: Path) -> None:
    weighted = recipe_terms("pw_opsd")["distil"]
    flat = replace(weighted, weights=(Position(least=1.0),))
    base = replace(recipe_terms("opsd")["distil"], average="sequence")
    trajectories = draw_trajectories()
    found = [update_of(tiny_model_dir, {"distil": term}, trajectories) for term in (flat, base)]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert distance(found[0][1], found[1][1]) < 1e-5
    _, pull = update_of(tiny_model_dir, {"distil": weighted}, trajectories)
    assert distance(pull, found[1][1]) > 1e-2
