"""arXiv 2607.10805: the target where the student is unsure; elsewhere it is the plain one."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.objective.divergence import ForwardKL
from opd.objective.loss import Distill
from opd.objective.schedule import Constant, Steered
from opd.objective.target import Sheltered
from opd.types import Update
from tests.rows import D0_STUDENT, D0_TEACHER, pulled, said_by
from tests.students import distance, distil, pull_of, recipe_terms

BASE = (0.3, 0.5, 0.2)


def sheltered(above: float, temperature: float) -> Sheltered:
    return Sheltered(view="q", anchor="base", above=Constant(value=above), temperature=temperature)


@pytest.mark.parametrize(
    ("temperature", "taken", "gate"),
    [(1.0, 1, 0.568874072), (1.0, 0, 0.444270929), (0.1, 1, 0.941176471), (0.1, 0, 0.096349266)],
)
def test_the_target_leans_on_the_base_by_the_gate(
    temperature: float, taken: int, gate: float
) -> None:
    found = said_by(sheltered(1.0, temperature), D0_STUDENT, taken, q=D0_TEACHER, base=BASE)
    want = [gate * b + (1 - gate) * q for b, q in zip(BASE, D0_TEACHER, strict=True)]
    assert found == pytest.approx(want, abs=1e-8)
    if (temperature, taken) == (0.1, 1):
        assert found == pytest.approx((0.323529412, 0.482352941, 0.194117647), abs=1e-8)


@pytest.mark.parametrize(("above", "inside"), [(1.054, 1.0), (1.055, 0.0)])
def test_only_where_the_students_entropy_is_high(above: float, inside: float) -> None:
    """H(s) is 1.054920168."""
    loss = Distill(target=sheltered(above, 1.0), divergence=ForwardKL())
    value, _, observed = pulled(loss, D0_STUDENT, 1, q=D0_TEACHER, base=BASE)
    assert observed["sheltered"].tolist() == [inside]
    assert (value == pytest.approx(0.183786897, abs=1e-8)) == (not inside)


def test_the_bound_follows_the_share_that_it_lets_in() -> None:
    bound = Steered(metric="sheltered/distil", aim=0.2, start=0.1)
    for share in (0.2, 0.7, 0.2):
        bound.observe(Update(0, 0.0, 0.0, 0, {"sheltered/distil": share}), ())
    assert bound.now == pytest.approx(0.1 * 2.718281828**0.5)
    again = Steered(metric="sheltered/distil", aim=0.2, start=0.1)
    again.load_state_dict(bound.state_dict())
    again.observe(Update(0, 0.0, 0.0, 0, {}), ())
    assert again.now == bound.now


def test_where_nothing_is_sheltered_it_is_plain_distillation(tiny_model_dir: Path) -> None:
    terms = recipe_terms("adopsd", "terms.distil.loss.target.above=1e9")
    want = pull_of(tiny_model_dir, {"distil": distil("solution")})
    assert distance(pull_of(tiny_model_dir, terms), want) < 1e-5
    everywhere = recipe_terms("adopsd", "terms.distil.loss.target.above=0")
    assert distance(pull_of(tiny_model_dir, everywhere), want) > 1e-2
