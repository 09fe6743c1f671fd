"""arXiv 2606.11709: one view, away from a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.objective.divergence import ForwardKL
from opd.objective.loss import Distill, WhereApart
from opd.objective.target import Contrasted
from opd.objective.term import Term
from tests.rows import D0_STUDENT, D0_TEACHER, Row, pulled, said_by
from tests.students import distance, distil, pull_of, recipe_terms


@pytest.mark.parametrize(
    ("strength", "wrong", "want"),
    [
        (0.0, (0.2, 0.2, 0.6), D0_TEACHER),
        # q^2 / r = (2.45, .2, .016667), and q^1.5 / r^.5 = (1.309580, .2, .040825).
        (1.0, (0.2, 0.2, 0.6), (0.91875, 0.075, 0.00625)),
        (0.5, (0.2, 0.2, 0.6), (0.844670, 0.128999, 0.026332)),
        # What both would say is left as it is.
        (0.5, D0_TEACHER, D0_TEACHER),
    ],
)
def test_the_target(strength: float, wrong: Row, want: Row) -> None:
    target = Contrasted(view="right", against="wrong", strength=strength)
    found = said_by(target, D0_STUDENT, right=D0_TEACHER, wrong=wrong)
    assert found == pytest.approx(want, abs=1e-6)


def test_what_the_wrong_view_never_says_is_not_raised_without_bound() -> None:
    target = Contrasted(view="right", against="wrong", strength=1.0, floor=-2.0)
    found = said_by(target, D0_STUDENT, right=(0.5, 0.5), wrong=(1 - 1e-12, 1e-12))
    assert found == pytest.approx((0.119203, 0.880797), abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "half", "left"),
    [
        # KL((.7, .2, .1) || (.2, .2, .6)) is .697758 nats.
        ((0.2, 0.2, 0.6), 1.0, 0.410987948),
        ((0.2, 0.2, 0.6), 0.697758131, 0.5),
        (D0_TEACHER, 1.0, 0.0),
        ((0.0, 0.5, 0.5), 1.0, 1.0),
    ],
)
def test_what_is_left_of_a_loss(wrong: Row, half: float, left: float) -> None:
    """The target's own pull is s - q = (-.3, .2, .1)."""
    distil = Distill(target="right", divergence=ForwardKL())
    loss = WhereApart(loss=distil, view="right", against="wrong", half=half)
    value, pull, observed = pulled(loss, D0_STUDENT, right=D0_TEACHER, wrong=wrong)
    assert value == pytest.approx(left * 0.183786897, abs=1e-8)
    assert pull == pytest.approx([-0.3 * left, 0.2 * left, 0.1 * left], abs=1e-8)
    assert observed["left"].item() == pytest.approx(left, abs=1e-8)


def test_the_recipe_holds_the_authors_numbers() -> None:
    loss = recipe_terms("opsd_contrast")["distil"].loss
    assert isinstance(loss, WhereApart) and loss.views == ("wrong", "solution")
    assert loss.half == 1.0 and isinstance(loss.loss, Distill)
    assert loss.loss.target == Contrasted(view="solution", against="wrong", strength=0.5)


def test_without_strength_it_is_plain_distillation(tiny_model_dir: Path) -> None:
    nearly_all = "terms.distil.loss.half=1e-12"
    plain = "terms.distil.loss.loss.target.strength=0"
    terms = recipe_terms("opsd_contrast", plain, nearly_all)
    want = pull_of(tiny_model_dir, {"distil": distil("solution")})
    assert distance(pull_of(tiny_model_dir, terms), want) < 1e-5
    same = Contrasted(view="solution", against="solution")
    alike = {"distil": Term(loss=Distill(target=same, divergence=ForwardKL()))}
    assert distance(pull_of(tiny_model_dir, alike), want) < 1e-5
    for kept in (plain, nearly_all):
        half_way = recipe_terms("opsd_contrast", kept)
        assert distance(pull_of(tiny_model_dir, half_way), want) > 1e-2
