"""arXiv 2601.13100: an anchored recursion comes back to its base."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.objective.divergence import ForwardKL
from opd.objective.loss import Distill
from opd.objective.schedule import Constant
from opd.objective.target import Interpolated, Mixed, Target
from tests.rows import logs, said_by
from tests.students import distance, distil, pull_of, recipe_terms

BASE, START = (0.7, 0.2, 0.1), (0.2, 0.3, 0.5)
RECENT = Constant(value=0.7)


@pytest.mark.parametrize(
    ("target", "kept", "distances"),
    [
        (
            Mixed(start="base", view="last", share=RECENT),
            0.7,
            (0.634897, 0.291682, 0.149202, 0.078696),
        ),
        (
            Interpolated(start="base", view="last", share=RECENT),
            0.7,
            (0.634897, 0.299861, 0.140166, 0.065801),
        ),
        (Mixed(start="base", view="last", share=Constant(value=1.0)), 1.0, (0.634897,) * 4),
    ],
)
def test_how_fast_a_student_that_is_taught_exactly_comes_back(
    target: Target, kept: float, distances: tuple[float, ...]
) -> None:
    """KL(base || generation), and its bound: a share .7 is kept each time; without an anchor
    nothing comes back."""
    last, found = list(START), []
    for _ in distances:
        found.append(ForwardKL()(logs(last), logs(BASE)).item())
        last = said_by(target, BASE, base=BASE, last=last)
    assert found == pytest.approx(distances, abs=1e-6)
    bounds = [kept**generation * found[0] for generation in range(len(found))]
    if kept < 1:
        assert bounds == pytest.approx((0.634897, 0.444428, 0.311100, 0.217770), abs=1e-6)
    assert all(near <= bound + 1e-9 for near, bound in zip(found, bounds, strict=True))


def test_without_an_anchor_it_is_plain_distillation(tiny_model_dir: Path) -> None:
    terms = recipe_terms("rmd", "terms.distil.loss.target.share=1")
    want = pull_of(tiny_model_dir, {"distil": distil("solution")})
    assert distance(pull_of(tiny_model_dir, terms), want) < 1e-5
    loss = recipe_terms("rmd")["distil"].loss
    assert isinstance(loss, Distill) and loss.target == Mixed(
        start="base", view="solution", share=RECENT
    )
