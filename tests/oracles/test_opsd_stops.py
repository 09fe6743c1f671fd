"""arXiv 2609.20511: two ids that both stop are one event. Worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd.errors import RecipeError
from opd.objective.divergence import JSD, Divergence, ForwardKL, ReverseKL
from opd.objective.logits import Logits
from opd.objective.loss import Distill
from opd.objective.support import Full, Merged, Support, TopK
from opd.objective.term import Term
from tests.rows import pulled
from tests.students import distance, distil, pull_of, recipe_terms

STUDENT, TEACHER = (0.6, 0.1, 0.3), (0.1, 0.6, 0.3)
BOTH = Merged(ids=(0, 1))


@pytest.mark.parametrize(("support", "nats"), [(Full(), 0.895879735), (BOTH, 0.0)])
def test_the_divergence(support: Support, nats: float) -> None:
    loss = Distill(target="q", divergence=ForwardKL(), support=support)
    value, pull, _ = pulled(loss, STUDENT, q=TEACHER)
    assert value == pytest.approx(nats, abs=1e-8)
    assert (max(map(abs, pull)) < 1e-9) == (nats == 0)


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JSD()])
def test_together_they_are_pulled_as_one(divergence: Divergence) -> None:
    """Merged (.5, .5) against (.8, .2) is the same however each side splits its stops; what pulls
    at both is split as the student has split them."""
    merged = Distill(target="q", divergence=divergence, support=BOTH)
    plain = Distill(target="q", divergence=divergence)
    value, pull, _ = pulled(merged, (0.4, 0.1, 0.5), q=(0.2, 0.6, 0.2))
    want, one, _ = pulled(plain, (0.5, 0.5), q=(0.8, 0.2))
    assert value == pytest.approx(want)
    assert pull == pytest.approx([0.8 * one[0], 0.2 * one[0], one[1]])


def test_before_any_other_support() -> None:
    loss = Distill(
        target="q", divergence=ForwardKL(), support=Merged(ids=(0, 1), support=TopK(size=1))
    )
    # The student's first entry is the stop of .5; the rest is the tail.
    assert pulled(loss, (0.3, 0.2, 0.26, 0.24), q=(0.2, 0.6, 0.1, 0.1))[0] == pytest.approx(
        0.192744757, abs=1e-6
    )


def test_ids_that_nobody_says_change_nothing(tiny_model_dir: Path) -> None:
    """And what two ids share is less than what tells them apart."""
    quiet = (0.4, 0.4, 0.2, 1e-300, 1e-300), (0.7, 0.2, 0.1, 1e-300, 1e-300)
    for support in (Full(), Merged(ids=(3, 4))):
        loss = Distill(target="q", divergence=ForwardKL(), support=support)
        assert pulled(loss, quiet[0], q=quiet[1])[0] == pytest.approx(0.183786897, abs=1e-8)
    merged = Term(loss=Distill(target="solution", divergence=ForwardKL(), support=BOTH))
    found = pull_of(tiny_model_dir, {"distil": merged})
    assert all(torch.isfinite(each).all() for each in found.values())
    assert 0 < distance(found, pull_of(tiny_model_dir, {"distil": distil("solution")})) < 0.3


@pytest.mark.parametrize(("stopped", "same"), [(-1e4, True), (0.0, False)])
def test_where_nobody_stops_it_is_the_base_method(stopped: float, same: bool) -> None:
    """The recipe's own ids, in a few rows of a vocabulary of 300."""
    merged, plain = (recipe_terms(name)["distil"].loss for name in ("opsd_stops", "opsd"))
    assert isinstance(merged, Distill) and isinstance(merged.support, Merged)
    assert isinstance(plain, Distill)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 5, 300, generator=generator, dtype=torch.float64)
    # The two sides would stop with different ones.
    rows[0][:, list(merged.support.ids)] = stopped
    rows[1][:, list(merged.support.ids)] = stopped + torch.tensor([0.0, 3.0]).double()
    taken, found = torch.arange(5), []
    for loss in (merged, plain):
        student = rows[0].clone().requires_grad_()
        teachers = {"solution": Logits(rows[1])}
        values = loss.rows(Logits(student), taken, torch.zeros(5), teachers)[0]
        found += [torch.cat([values[:, None], *torch.autograd.grad(values.sum(), student)], -1)]
    assert torch.allclose(*found, rtol=0, atol=1e-9) == same


def test_an_id_that_the_vocabulary_has_not_is_refused() -> None:
    loss = Distill(target="q", divergence=ForwardKL(), support=Merged(ids=(0, 3)))
    with pytest.raises(RecipeError, match=r"Merged\.ids holds 3, and the vocabulary has 3 entries"):
        pulled(loss, STUDENT, q=TEACHER)
