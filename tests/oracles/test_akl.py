"""arXiv 2404.02657: forward and reverse KL by the gaps in head and tail."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.objective.divergence import HeadTail
from opd.objective.loss import Distill
from tests.rows import A_STUDENT, A_TEACHER, D0_STUDENT, D0_TEACHER, Row, pulled
from tests.students import distance, distil, pull_of, recipe_terms

NEAR_HEAD = (0.65, 0.05, 0.3)


@pytest.mark.parametrize(
    ("student", "teacher", "nats"),
    [
        # Gaps .2 and .2: (0.0992728 + 0.1166225) / 2.
        (A_STUDENT, A_TEACHER, 0.1079476),
        # Gaps .3 and .3: (0.183786897 + 0.192041993) / 2.
        (D0_STUDENT, D0_TEACHER, 0.187914445),
        # Gaps .05 and .15 + .2: an eighth of 0.2192732 and seven of 0.2120988.
        (NEAR_HEAD, A_TEACHER, 0.2129956),
    ],
)
def test_the_divergence(student: Row, teacher: Row, nats: float) -> None:
    loss = Distill(target="q", divergence=HeadTail())
    assert pulled(loss, student, q=teacher)[0] == pytest.approx(nats, abs=1e-6)


def test_the_gradient_is_of_the_same_shares() -> None:
    """Halves of (-.3, .2, .1) and (-.30066311, .20044207, .10022104)."""
    pull = pulled(Distill(target="q", divergence=HeadTail()), D0_STUDENT, q=D0_TEACHER)[1]
    assert pull == pytest.approx((-0.300331555, 0.200221035, 0.10011052), abs=1e-6)


def test_without_a_tail_it_is_forward_kl(tiny_model_dir: Path) -> None:
    terms = recipe_terms("akl", "terms.distil.loss.divergence.tail=1e-9")
    want = pull_of(tiny_model_dir, {"distil": distil("solution")})
    assert distance(pull_of(tiny_model_dir, terms), want) < 1e-5
    assert distance(pull_of(tiny_model_dir, recipe_terms("akl")), want) > 1e-3
