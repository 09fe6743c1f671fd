"""arXiv 2602.02244: the temperature that lifts entropy, and the pull toward it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd.config import build, load_recipe
from opd.objective.loss import Likelihood, SquaredLogRatio
from opd.objective.target import EntropyLifted, entropy
from opd.objective.term import Term
from opd.recipe import Recipe
from opd.teacher.weights import EMA
from tests.rows import pulled
from tests.students import distance, pull_of, recipe_terms


@pytest.mark.parametrize(
    ("logits", "now", "temperature", "then"),
    [
        ((3.0, 1.0, 0.0, -1.0), 0.5950867, 1.137494, 0.7099526),
        # It would have to be hotter than allowed to get to 1.2611674.
        ((2.0, 1.0, 0.0, 0.0), 1.0487051, 1.5, 1.2254507),
        ((60.0, 1.0, 0.0, 0.0), 0.0, 1.1, 0.0),
    ],
)
def test_the_temperature(
    logits: tuple[float, ...], now: float, temperature: float, then: float
) -> None:
    side = torch.tensor([logits], dtype=torch.float64).log_softmax(-1)
    assert entropy(side).item() == pytest.approx(now, abs=1e-6)
    target = EntropyLifted(view="q")
    found, observed = target(side, {"q": side}, torch.tensor([0]))
    assert observed["temperature"].item() == pytest.approx(temperature, abs=1e-6)
    assert entropy(found.log_softmax(-1)).item() == pytest.approx(then, abs=1e-6)


def test_the_loss_and_its_slope() -> None:
    """s(y) = .5 and q(y) = .3: the sum is .8236186 and falls by .4891744 a nat."""
    explore = pulled(SquaredLogRatio(target="q"), (0.5, 0.5), q=(0.3, 0.7))
    imitate = pulled(Likelihood(), (0.5, 0.5))
    assert explore[0] + imitate[0] == pytest.approx(0.8236186, abs=1e-6)
    # The slope in a logit is 1 - s(y) of that in the log-prob.
    assert (explore[1][0] + imitate[1][0]) / 0.5 == pytest.approx(-0.4891744, abs=1e-6)


def test_the_copy_is_nearly_whole_and_five_steps_apart() -> None:
    """phi <- 0.01 phi + 0.99 theta."""
    recipe = build(Recipe, load_recipe("curiosft"))
    assert recipe.teacher.weights == EMA(decay=0.01, every=5)


def test_without_the_pull_it_is_imitation(tiny_model_dir: Path) -> None:
    terms = recipe_terms("curiosft", "terms.explore.coefficient=0")
    want = pull_of(tiny_model_dir, {"imitate": Term(loss=Likelihood())})
    assert distance(pull_of(tiny_model_dir, terms), want) < 1e-6
    assert distance(pull_of(tiny_model_dir, recipe_terms("curiosft")), want) > 1e-3
