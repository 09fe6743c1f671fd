"""Exits at every layer: arXiv 2503.03008."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.schedule import Constant
from tests.students import distance, draw_trajectories, recipe_terms, update_of


def test_an_exit_weighs_its_layers_share_of_the_depth() -> None:
    terms = recipe_terms("mose").values()
    found = [(term.exit or 3, term.coefficient.at(0, 150)) for term in terms]
    assert found == [(layer, pytest.approx(layer / 3)) for layer in (1, 2, 3)]


def test_exits_that_count_nothing_are_the_base_method(tiny_model_dir: Path) -> None:
    whole = {"whole": recipe_terms("mose")["whole"]}
    early = replace(whole["whole"], exit=1)
    off = {**whole, "early": replace(early, coefficient=Constant(value=0.0))}
    trajectories = draw_trajectories()
    found = [
        update_of(tiny_model_dir, terms, trajectories)
        for terms in (off, recipe_terms("opsd"), {**whole, "early": early})
    ]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert distance(found[0][1], found[1][1]) < 1e-6 < distance(found[2][1], found[1][1])


def test_an_exit_trains_nothing_above_its_layer(tiny_model_dir: Path) -> None:
    early = {"early": replace(recipe_terms("mose")["whole"], exit=1)}
    _, found = update_of(tiny_model_dir, early, draw_trajectories())
    above = [gradient for name, gradient in found.items() if ".layers.1." in name]
    below = [gradient for name, gradient in found.items() if ".layers.0." in name]
    assert below and all(bool(gradient.any()) for gradient in below)
    assert above and not any(bool(gradient.any()) for gradient in above)
    assert bool(found["model.norm.weight"].any())
    assert torch.isfinite(torch.stack([gradient.abs().max() for gradient in found.values()])).all()
