"""arXiv 2608.09745: the anchored target and the Renyi divergence."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.objective.divergence import Divergence, ForwardKL, Renyi
from opd.objective.loss import Distill
from opd.objective.schedule import Constant
from opd.objective.target import Interpolated
from opd.objective.term import Term
from tests.rows import D0_STUDENT, D0_TEACHER, pulled, said_by
from tests.students import distance, pull_of, recipe_terms


@pytest.mark.parametrize(
    ("divergence", "nats"),
    [
        (Renyi(order=0.9), 0.167038716),
        (Renyi(order=0.95), 0.175479376),
        (Renyi(order=1 - 1e-9), 0.183786897),
        (ForwardKL(), 0.183786897),
    ],
)
def test_the_divergence(divergence: Divergence, nats: float) -> None:
    loss = Distill(target="q", divergence=divergence)
    assert pulled(loss, D0_STUDENT, q=D0_TEACHER)[0] == pytest.approx(nats, abs=1e-6)


def test_the_gradient_is_forward_kls_as_the_order_nears_one() -> None:
    loss = Distill(target="q", divergence=Renyi(order=1 - 1e-9))
    assert pulled(loss, D0_STUDENT, q=D0_TEACHER)[1] == pytest.approx((-0.3, 0.2, 0.1), abs=1e-6)


@pytest.mark.parametrize(
    ("share", "want"),
    [
        (0.5, (0.555005568, 0.296662955, 0.148331477)),
        (0.8, (0.644911322, 0.236725785, 0.118362893)),
        (1.0, D0_TEACHER),
    ],
)
def test_the_target(share: float, want: tuple[float, ...]) -> None:
    target = Interpolated(view="q", start="base", share=Constant(value=share))
    found = said_by(target, (0.1, 0.1, 0.8), q=D0_TEACHER, base=D0_STUDENT)
    assert found == pytest.approx(want, abs=1e-8)


def test_without_an_anchor_it_is_the_teacher(tiny_model_dir: Path) -> None:
    terms = recipe_terms(
        "opsd_renyi", "terms.distil.loss.target.share=1", "terms.distil.loss.clip=none"
    )
    plain = Distill(target="solution", divergence=Renyi())
    want = pull_of(tiny_model_dir, {"distil": Term(loss=plain)})
    assert distance(pull_of(tiny_model_dir, terms), want) < 1e-5
    near = Distill(target="solution", divergence=Renyi(order=0.999))
    kl = pull_of(
        tiny_model_dir, {"distil": Term(loss=Distill(target="solution", divergence=ForwardKL()))}
    )
    assert distance(pull_of(tiny_model_dir, {"distil": Term(loss=near)}), kl) < 2e-2
