"""Texts learned again beside the first result's hidden states: arXiv 2210.02871. Worked by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.hidden_loss import HiddenSquares
from opd.objective.schedule import Constant
from tests.batches import batch_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of


@pytest.mark.parametrize(("over", "value"), [("sum", 5.0), ("mean", 2.5)])
def test_squared_distance_of_hidden_states(over, value: float) -> None:
    loss = recipe_terms("sdfpt")["remember"].loss
    assert isinstance(loss, HiddenSquares) and loss.over == "sum"
    hidden = torch.tensor([[1.0, 2.0]], requires_grad=True)
    found, _ = replace(loss, over=over).states(hidden, batch_of([1]), {"plain": torch.zeros(1, 2)})
    assert found.item() == pytest.approx(value, abs=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    assert gradient.tolist() == [pytest.approx([2 * value / 5, 4 * value / 5])]


def test_the_two_losses_have_one_weight() -> None:
    terms = recipe_terms("sdfpt")
    assert {name: term.coefficient for name, term in terms.items()} == {
        "imitate": Constant(value=1.0),
        "remember": Constant(value=1.0),
    }


def test_remembering_nothing_is_imitation(tiny_model_dir: Path) -> None:
    terms = recipe_terms("sdfpt")
    off = {**terms, "remember": replace(terms["remember"], coefficient=Constant(value=0.0))}
    shown = [replace(t, views={"plain": (5, 6, 7)}) for t in draw_trajectories()]
    found = [update_of(tiny_model_dir, each, shown) for each in (off, recipe_terms("sft"), terms)]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert distance(found[0][1], found[1][1]) < 1e-6 < distance(found[2][1], found[1][1])
