"""Exits at every layer: arXiv 2503.03008."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from opd.objective.schedule import Constant
from opd.objective.term import Term
from tests.conftest import character_tokenizer, save_random_model
from tests.students import distance, draw_trajectories, recipe_terms, update_of


def test_an_exit_weighs_its_layers_share_of_the_depth() -> None:
    terms = recipe_terms("mose").values()
    found = [(term.exit or 3, term.coefficient.at(0, 150)) for term in terms]
    assert found == [(layer, pytest.approx(layer / 3)) for layer in (1, 2, 3)]


@pytest.fixture(scope="module")
def deep_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's 36 layers, none of which adds anything to its input."""
    tokenizer = character_tokenizer()
    folder = save_random_model(tmp_path_factory.mktemp("deep") / "model", tokenizer, layers=36)
    path = folder / "model.safetensors"
    weights = load_file(path)
    added = ("o_proj.weight", "down_proj.weight")
    save_file(
        {n: torch.zeros_like(w) if n.endswith(added) else w for n, w in weights.items()},
        path,
        {"format": "pt"},
    )
    return folder


def test_the_papers_exits_weigh_what_it_says(deep_model_dir: Path) -> None:
    """Where layers add nothing all exits say the same, so that each pulls by its weight: i / 36 for
    the exits after 4, 9, 18, 27 and 36 layers."""
    whole = recipe_terms("mose")["whole"]
    exits = {layer: replace(whole, exit=layer) for layer in (4, 9, 18, 27)} | {36: whole}
    terms = {
        str(layer): replace(term, coefficient=Constant(value=layer / 36))
        for layer, term in exits.items()
    }
    one = draw_trajectories()[:1]
    _, base = update_of(deep_model_dir, {"distil": whole}, one)
    shared = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")

    def times(terms: dict[str, Term]) -> float:
        _, found = update_of(deep_model_dir, terms, one)
        pairs = [(found[name].double(), base[name].double()) for name in shared]
        return float(sum((a * b).sum() for a, b in pairs) / sum((b * b).sum() for _, b in pairs))

    weights = [times({name: term}) for name, term in terms.items()]
    assert weights == pytest.approx([0.111111, 0.25, 0.5, 0.75, 1], abs=1e-6)
    assert times(terms) == pytest.approx(2.611111, abs=1e-6)


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
