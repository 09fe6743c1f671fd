"""arXiv 2503.07067's variant that turns to the student's own texts; the rest is in
test_distillm2.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opd.config import build, load_recipe
from opd.recipe import Recipe

ENDS = ("terms.written.coefficient.end=1.0", "terms.sampled.coefficient.end=1.0")


def test_without_a_turn_it_is_the_base_method() -> None:
    flat, base = (
        build(Recipe, load_recipe(name, [*changes, "output=x"]))
        for name, changes in (("distillm2_gradual", ENDS), ("distillm2", ()))
    )
    for name, term in flat.terms.items():
        shares = [term.coefficient.at(step, flat.steps) for step in range(flat.steps)]
        assert shares == [base.terms[name].coefficient.at(0, base.steps)] * flat.steps
        flat.terms[name] = replace(term, coefficient=base.terms[name].coefficient)
    assert flat == base


@pytest.mark.parametrize(
    ("step", "written", "sampled"), [(0, 1, 1), (45, 0.7, 1.3), (75, 0.5, 1.5)]
)
def test_what_one_kind_of_text_loses_the_other_gains(
    step: int, written: float, sampled: float
) -> None:
    terms = build(Recipe, load_recipe("distillm2_gradual")).terms
    found = [terms[kind].coefficient.at(step, 150) for kind in ("written", "sampled")]
    assert found == pytest.approx([written, sampled], abs=1e-9)
