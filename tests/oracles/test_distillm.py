"""arXiv 2402.03898: skew divergences by the numbers, and forward KL where nothing is skewed."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.objective.divergence import Divergence, SkewKL, SkewReverseKL
from opd.objective.loss import Distill
from opd.objective.target import entropy
from tests.rows import A_STUDENT, A_TEACHER, logs, pulled
from tests.students import distance, distil, pull_of, recipe_terms


@pytest.mark.parametrize(
    ("divergence", "nats"),
    [
        (SkewKL(skew=0.1), 0.0820464),
        (SkewReverseKL(skew=0.1), 0.0900026),
        (SkewKL(skew=1e-9), 0.0992728),
        (SkewReverseKL(skew=1e-9), 0.1166225),
    ],
)
def test_the_divergences(divergence: Divergence, nats: float) -> None:
    value = pulled(Distill(target="q", divergence=divergence), A_STUDENT, q=A_TEACHER)[0]
    assert value == pytest.approx(nats, abs=1e-6)
    if divergence == SkewKL(skew=0.1):
        # As the authors' first code logs it.
        assert value + entropy(logs(A_TEACHER)).item() == pytest.approx(0.8838649, abs=1e-6)


def test_without_a_skew_it_is_forward_kl(tiny_model_dir: Path) -> None:
    terms = recipe_terms("distillm", "terms.distil.loss.divergence.skew=1e-7")
    want = pull_of(tiny_model_dir, {"distil": distil("solution")})
    assert distance(pull_of(tiny_model_dir, terms), want) < 1e-3
