"""arXiv 2606.11709: one view, away from a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.objective.divergence import ForwardKL
from opd.objective.loss import Distill
from opd.objective.target import Contrasted
from opd.objective.term import Term
from tests.rows import D0_STUDENT, D0_TEACHER, Row, said_by
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


def test_without_strength_it_is_plain_distillation(tiny_model_dir: Path) -> None:
    terms = recipe_terms("opsd_contrast", "terms.distil.loss.target.strength=0")
    want = pull_of(tiny_model_dir, {"distil": distil("solution")})
    assert distance(pull_of(tiny_model_dir, terms), want) < 1e-5
    same = Contrasted(view="solution", against="solution")
    alike = {"distil": Term(loss=Distill(target=same, divergence=ForwardKL()))}
    assert distance(pull_of(tiny_model_dir, alike), want) < 1e-5
    assert distance(pull_of(tiny_model_dir, recipe_terms("opsd_contrast")), want) > 1e-2
