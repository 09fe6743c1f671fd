"""arXiv 2607.02502: how far the target gives way, and what that does to the gradient."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.objective.divergence import ReverseKL
from opd.objective.loss import Distill
from opd.objective.target import Yielding
from opd.objective.term import Term
from tests.rows import D0_STUDENT, D0_TEACHER, pulled, said_by
from tests.students import distance, pull_of, recipe_terms

EXACT = (-0.30066311, 0.20044207, 0.10022104)


@pytest.mark.parametrize(
    ("steepness", "share"), [(0, 0.0), (25, 0.078128034), (50, 0.122911578), (100, 0.147073241)]
)
def test_the_share_and_the_gradient_that_it_leaves(steepness: float, share: float) -> None:
    """From the student itself the pull is (1 - share) of that to the teacher."""
    target = Yielding(view="q", anchor="own", steepness=steepness)
    loss = Distill(target=target, divergence=ReverseKL())
    _, pull, observed = pulled(loss, D0_STUDENT, q=D0_TEACHER, own=D0_STUDENT)
    assert observed["yielded"].item() == pytest.approx(share, abs=1e-8)
    assert pull == pytest.approx([(1 - share) * each for each in EXACT], abs=1e-7)


def test_the_papers_target() -> None:
    target = Yielding(view="q", anchor="own", steepness=50)
    found = said_by(target, D0_STUDENT, q=D0_TEACHER, own=D0_STUDENT)
    assert found == pytest.approx((0.666704800, 0.222196800, 0.111098400), abs=1e-8)
    loss = Distill(target=target, divergence=ReverseKL())
    value, pull, _ = pulled(loss, D0_STUDENT, q=D0_TEACHER, own=D0_STUDENT)
    assert value == pytest.approx(0.148387514, abs=1e-8)
    assert pull == pytest.approx((-0.263708, 0.175805, 0.087903), abs=1e-6)


def test_what_never_yields_is_reverse_kl_to_the_sibling(tiny_model_dir: Path) -> None:
    terms = recipe_terms("demopsd", "terms.distil.loss.target.steepness=0")
    want = pull_of(
        tiny_model_dir, {"distil": Term(loss=Distill(target="sibling", divergence=ReverseKL()))}
    )
    assert distance(pull_of(tiny_model_dir, terms), want) < 1e-5
    assert distance(pull_of(tiny_model_dir, recipe_terms("demopsd")), want) > 1e-3
