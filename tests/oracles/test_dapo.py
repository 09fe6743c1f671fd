"""Clip-higher, contested groups and overlong responses: arXiv 2503.14476."""

from __future__ import annotations

import pytest

from opd.config import build, load_recipe
from opd.objective.credit import GroupMean, Overlong
from opd.recipe import Recipe
from opd.selection import Contested
from tests.batches import batch_of, group
from tests.students import recipe_terms


@pytest.mark.parametrize(
    ("tokens", "loss"), [(12000, 0), (12288, 0), (14336, 0.5), (16384, 1), (20000, 1)]
)
def test_what_an_overlong_response_loses(tokens: int, loss: float) -> None:
    """The paper's numbers: at most 16,384 tokens, of which the last 4,096 cost."""
    credit = Overlong(limit=16384, buffer=4096)
    assert credit.loss(tokens) == pytest.approx(loss, abs=1e-6)


def test_uncontested_problems_are_left_out() -> None:
    selection = build(Recipe, load_recipe("dapo")).selection
    assert selection == Contested()
    chosen = [len(selection(group(rewards))) for rewards in ([1, 1], [0, 0], [1, 0, 0], [1, None])]
    assert chosen == [0, 0, 3, 0]


def test_mean_over_tokens_of_unequal_responses() -> None:
    (term,) = recipe_terms("dapo").values()
    batch = batch_of([2, 8])
    weight = term.weight(batch, {})
    losses = weight.new_tensor([1.0] * 2 + [0.5] * 8)
    total = term.numerator(losses, weight, batch, 10) / term.mass(weight, batch, 10)
    assert total.item() == pytest.approx(0.6)


def test_short_responses_of_contested_groups_leave_the_base_method() -> None:
    recipe = build(Recipe, load_recipe("dapo"))
    base = build(Recipe, load_recipe("grpo"))
    assert recipe.terms == base.terms
    contested = group([1, 0, 0])
    assert recipe.credit(contested) == pytest.approx(base.credit(contested))
    assert recipe.credit.limit == recipe.sampling.max_response_tokens  # pyright: ignore


def test_rewards_are_compared_after_the_loss() -> None:
    uneven = group([1, 1], lengths=[1, 14])
    plain = Overlong(limit=16, buffer=4, credit=GroupMean(scale=False))
    assert plain(uneven) == pytest.approx([0.25, -0.25])
    assert Overlong(limit=99, buffer=4, credit=GroupMean(scale=False))(uneven) == [0, 0]
