"""arXiv 2603.07079: which KLs are taken at which of the teacher's entropies."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.objective.divergence import EntropyAware, ReverseKL
from opd.objective.loss import Distill
from opd.objective.term import Term
from tests.rows import D0_STUDENT, D0_TEACHER, pulled
from tests.students import distance, distil, pull_of, recipe_terms


@pytest.mark.parametrize(
    ("above", "nats", "gradient"),
    [
        # The two logit gradients, each by hand, are added.
        (0.801, 0.183786897 + 0.192041993, (-0.60066311, 0.40044207, 0.20022104)),
        (0.802, 0.192041993, (-0.30066311, 0.20044207, 0.10022104)),
    ],
)
def test_the_divergence(above: float, nats: float, gradient: tuple[float, ...]) -> None:
    """H(q) is 0.801818553."""
    loss = Distill(target="q", divergence=EntropyAware(above=above))
    value, pull, _ = pulled(loss, D0_STUDENT, q=D0_TEACHER)
    assert value == pytest.approx(nats, abs=1e-8)
    assert pull == pytest.approx(gradient, abs=1e-7)


@pytest.mark.parametrize(("above", "both"), [(0, True), (1e9, False)])
def test_at_either_end_it_is_both_kls_or_one(
    tiny_model_dir: Path, above: float, both: bool
) -> None:
    terms = recipe_terms("eopd", f"terms.distil.loss.divergence.above={above}")
    reverse = Term(loss=Distill(target="solution", divergence=ReverseKL()))
    forward = {"forward": distil("solution")} if both else {}
    want = pull_of(tiny_model_dir, {"reverse": reverse, **forward})
    assert distance(pull_of(tiny_model_dir, terms), want) < 1e-5
