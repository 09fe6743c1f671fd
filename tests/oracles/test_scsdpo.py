"""A sibling's success teaches most where about half succeed: arXiv 2605.27765."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd.config import build, load_recipe
from opd.objective.term import Term
from opd.recipe import Recipe
from tests.batches import batch_of, scores_of
from tests.runs import run

RATES = (0.0, 0.25, 0.5, 0.875, 1.0)


def term(*overrides: str) -> Term:
    return build(Recipe, load_recipe("scsdpo", overrides)).terms["distil"]


def test_weights_are_roots_of_p_times_one_minus_p() -> None:
    batch, scores = batch_of([1] * 5, pass_rate=RATES), {"sibling": scores_of(5)}
    weights = term().weight(batch, scores)
    assert weights.tolist() == pytest.approx((0, 0.433012702, 0.5, 0.330718914, 0), abs=1e-6)
    # What a unit loss of one token counts is its weight relative to the mean of those that count.
    mean = term().mass(weights, batch, 8) / 3
    relative = (weights / mean)[1:4]
    assert relative.tolist() == pytest.approx((1.027938282, 1.186960887, 0.785100831), abs=1e-6)


def test_losses_are_averaged_by_these_weights() -> None:
    batch, scores = batch_of([1] * 5, pass_rate=RATES), {"sibling": scores_of(5)}
    weights = term().weight(batch, scores)
    losses = torch.tensor([9.0, 1.0, 2.0, 3.0, 9.0])
    value = term().numerator(losses, weights, batch, 8) / term().mass(weights, batch, 8)
    expected = (1.027938282 * 1 + 1.186960887 * 2 + 0.785100831 * 3) / 3
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_without_exponents_it_is_the_base_method(tiny_model_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    flat = ["terms.distil.weights=[{name: PassRate, a: 0, b: 0}]"]
    runs = {"ours": load_recipe("scsdpo", flat), "base": load_recipe("sdpo")}
    for name, tree in runs.items():
        views = {"sibling": {"name": "Sibling", "template": "$question $sibling"}}
        changes = {"terms": tree["terms"], "teacher": {"views": views}}
        # Half of the rollouts pass, so that every group has a sibling to show.
        changes |= {"reward": "tests.unit.test_pass_rate:EvenIds"}
        changes |= {"steps": 2, "benchmarks": {}, "source": tree["source"]}
        run(tiny_model_dir, tmp_path / name, **changes)
    found, expected = (load_file(tmp_path / name / "model" / "model.safetensors") for name in runs)
    before = load_file(tiny_model_dir / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not all(torch.equal(found[name], before[name]) for name in expected)
