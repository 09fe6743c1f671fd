"""What must fit together in a recipe."""

from __future__ import annotations

import pytest

from opd.config import build, load_recipe
from opd.errors import RecipeError
from opd.recipe import Recipe


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        ("srpo", "terms.distil.pool=other", "nothing is shared"),
        ("srpo", "terms.distil.average=sequence", "one average"),
        ("srpo", "teacher.views.sibling=null", "reads the view 'sibling'"),
        ("opsd_reason_first", "teacher.weights={name: External, path: x}", "cannot hold External"),
        ("opsd_reason_first", "teacher.weights={name: Cached, path: x}", "cannot hold Cached"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(name: str, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build(Recipe, load_recipe(name, [override]))
