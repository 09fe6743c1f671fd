"""arXiv 2607.28582: a target part of the way, in logits, from the initial model to its teacher."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.objective.loss import Distill
from opd.objective.target import Interpolated
from tests.rows import D0_STUDENT, D0_TEACHER, pulled, said_by
from tests.students import distance, pull_of, recipe_terms

SHARE = "terms.distil.loss.target.share"


def recipe_loss(share: float) -> Distill:
    loss = recipe_terms("opsd_beta", f"{SHARE}={share}")["distil"].loss
    assert isinstance(loss, Distill)
    return loss


@pytest.mark.parametrize(
    ("share", "want"),
    [
        (0.0, D0_STUDENT),
        (0.5, (0.555005568, 0.296662955, 0.148331477)),
        (0.8, (0.644911322, 0.236725785, 0.118362893)),
        (1.0, D0_TEACHER),
    ],
)
def test_the_target(share: float, want: tuple[float, ...]) -> None:
    """Whatever the student says by now."""
    target = recipe_loss(share).target
    assert isinstance(target, Interpolated)
    found = said_by(target, (0.1, 0.1, 0.8), solution=D0_TEACHER, plain=D0_STUDENT)
    assert found == pytest.approx(want, abs=1e-8)


@pytest.mark.parametrize(
    ("share", "nats", "target"),
    [
        (0.5, 0.048777326, (0.555005568, 0.296662955, 0.148331477)),
        (1.0, 0.183786897, D0_TEACHER),
    ],
)
def test_the_divergence(share: float, nats: float, target: tuple[float, ...]) -> None:
    """At the initial student, pulled by what parts it from the target."""
    value, pull, _ = pulled(recipe_loss(share), D0_STUDENT, solution=D0_TEACHER, plain=D0_STUDENT)
    assert value == pytest.approx(nats, abs=1e-8)
    gaps = [s - q for s, q in zip(D0_STUDENT, target, strict=True)]
    assert pull == pytest.approx(gaps, abs=1e-8)


def test_all_of_the_way_it_is_the_base_method(tiny_model_dir: Path) -> None:
    base = pull_of(tiny_model_dir, recipe_terms("opsd"))
    whole = pull_of(tiny_model_dir, recipe_terms("opsd_beta", f"{SHARE}=1"))
    assert distance(whole, base) < 1e-5
    assert distance(pull_of(tiny_model_dir, recipe_terms("opsd_beta")), base) > 1e-2
