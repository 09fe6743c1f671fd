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
        ("eytng", "source=OnPolicy", r"terms\.imitate\.loss\.target: it takes taken tokens"),
        ("pskd", "source=OnPolicy", r"terms\.\w+\.loss\.target: it takes taken tokens"),
        ("opsd_reason_first", "teacher.weights={name: Cached, path: x}", "cannot hold Cached"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(name: str, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build(Recipe, load_recipe(name, [override]))


RECORDED = "teacher.weights={name: Cached, path: scores}"


@pytest.mark.parametrize(
    "exposure",
    ["0.5", "{name: Random}", "{name: Annealed, share: {name: Linear, start: 1, end: 0}}"],
)
def test_scores_of_whole_references_are_not_of_parts(exposure: str) -> None:
    with pytest.raises(RecipeError, match="'solution' was scored with whole references"):
        build(Recipe, load_recipe("opsd", [RECORDED, f"teacher.exposure={exposure}"]))


def test_what_is_recorded_is_whole_or_another_view() -> None:
    assert build(Recipe, load_recipe("opsd", [RECORDED, "teacher.exposure=1"]))
    beside = [
        "teacher.views.plain=Plain",
        "teacher.weights_by_view.plain={name: Cached, path: scores}",
        "teacher.exposure=0.5",
    ]
    assert build(Recipe, load_recipe("opsd", beside))
    with pytest.raises(RecipeError, match="whole references"):
        build(Recipe, load_recipe("opsd", [*beside, RECORDED]))


@pytest.mark.parametrize(
    ("recipe", "term"),
    [
        ("grpo", "reinforce"),
        ("gspo", "reinforce"),
        ("minillm", "rest_of_the_response"),
        ("skillsd", "distil"),
        ("sipo", "reinforce"),
        ("distilled_rl", "reinforce"),
    ],
)
def test_what_takes_a_ratio_to_the_sampler_needs_one(recipe: str, term: str) -> None:
    tree = load_recipe(recipe, ["source={name: Demonstrations, read: solution}"])
    alone = {**tree, "terms": {term: tree["terms"][term]}}  # pyright: ignore[reportIndexIssue]
    with pytest.raises(RecipeError, match=rf"source: terms\.{term} needs sampled rollouts"):
        build(Recipe, alone)
