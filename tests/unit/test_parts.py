"""Parts that hold state, learn or move are found wherever they stand in a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field

import pytest

from opd.config import build, load_recipe, part
from opd.errors import DataError, RecipeError
from opd.objective.divergence import JSD
from opd.objective.loss import Distill
from opd.objective.schedule import Constant, Linear, Schedule
from opd.objective.target import Interpolated
from opd.objective.term import Term
from opd.parts import observe, parts, restore_state, state_of, tell
from opd.privileged import Group
from opd.recipe import Recipe
from opd.types import Update


@part
class Counted(Schedule):
    """As many as the tokens that it has seen trained on."""

    seen: int = field(init=False, default=0, repr=False, compare=False)

    def at(self, step: int, steps: int) -> float:
        return float(self.seen)

    def observe(self, update: Update, groups: Sequence[Group]) -> None:
        self.seen += update.tokens

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.seen = state["seen"]


def terms(share: Schedule) -> dict[str, Term]:
    target = Interpolated(view="solution", share=share)
    return {"distil": Term(loss=Distill(target=target, divergence=JSD()))}


def update(tokens: int) -> Update:
    return Update(0, 0.0, 0.0, tokens, {})


def test_every_part_has_its_path() -> None:
    found = {where: type(each).__name__ for where, each in parts(terms(Constant(value=0.4)))}
    assert found["distil"] == "Term"
    assert found["distil.loss.target"] == "Interpolated"
    assert found["distil.loss.target.share"] == "Constant"
    recipe = build(Recipe, load_recipe("sdft"))
    paths = {where for where, _ in parts(recipe)}
    assert {"", "teacher.weights", "terms.distil.weights.0"} <= paths


def test_a_schedule_inside_a_term_is_told_the_step() -> None:
    share = Linear(start=0.0, end=1.0)
    assert share.now == 0.0
    tell(terms(share), 3, 4)
    assert share.now == 0.75


def test_state_goes_back_where_it_was() -> None:
    old, new = Counted(), Counted()
    observe(terms(old), update(5), ())
    observe(terms(old), update(2), ())
    state = state_of(terms(old))
    assert state == {"distil.loss.target.share": {"seen": 7}}
    restore_state(terms(new), state)
    assert new.now == 7.0


def test_state_of_other_parts_is_refused() -> None:
    state = state_of(terms(Counted()))
    with pytest.raises(DataError, match=r"share: the checkpoint holds state of it, .* keeps none"):
        restore_state(terms(Constant(value=0.4)), state)
    with pytest.raises(DataError, match=r"share: the checkpoint holds no state of it, .* some"):
        restore_state(terms(Counted()), {})


def test_a_number_that_moves_out_of_its_range_is_refused() -> None:
    share = "terms.distil.loss.target.share={name: Linear, start: 0.5, end: 2}"
    with pytest.raises(RecipeError, match=r"target\.share: it reaches .*; keep it at 0 or above"):
        build(Recipe, load_recipe("opsd_beta", [share]))
    build(Recipe, load_recipe("opsd_beta", [share.replace("end: 2", "end: 1")]))


def test_a_metric_of_no_such_term_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"share\.metric: 'loss/another' is of"):
        build(Recipe, load_recipe("taid", ["terms.distil.loss.target.share.metric=loss/another"]))


def test_a_part_that_stands_in_two_places_comes_once() -> None:
    shared = Counted()
    both = {"a": terms(shared), "b": terms(shared)}
    observe(both, update(5), ())
    assert shared.now == 5.0
    assert state_of(both).keys() == {"a.distil.loss.target.share"}
