"""arXiv 2006.12000: how far the written token is softened, and by what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opd.objective.divergence import CrossEntropy
from opd.objective.loss import Distill, Likelihood
from opd.objective.schedule import Constant, Warmup
from opd.objective.target import Mixed
from opd.objective.term import Term
from tests.rows import A_STUDENT, pulled, said_by
from tests.students import distance, pull_of, recipe_terms

BEFORE = (0.5, 0.3, 0.2)


def test_the_share_grows_to_four_fifths() -> None:
    """Of 10 epochs: the first, the fifth and the last."""
    loss = recipe_terms("pskd")["imitate"].loss
    assert isinstance(loss, Distill) and isinstance(loss.target, Mixed)
    share = loss.target.share
    assert isinstance(share, Warmup)
    found = [replace(share, warmup_steps=10).at(epoch, 10) for epoch in (0, 4, 9)]
    assert found == pytest.approx((0.08, 0.4, 0.8))
    ends = [share.at(step, 150) for step in (0, 149)]
    assert ends == pytest.approx((0.8 / 150, 0.8))


def test_the_target_and_its_loss() -> None:
    target = Mixed(view="before", share=Constant(value=0.4))
    found = said_by(target, A_STUDENT, 1, before=BEFORE)
    assert found == pytest.approx((0.2, 0.72, 0.08))
    value, pull, _ = pulled(
        Distill(target=target, divergence=CrossEntropy()), A_STUDENT, 1, before=BEFORE
    )
    assert value == pytest.approx(1.2476649, abs=1e-6)
    assert pull == pytest.approx((0.3, -0.47, 0.17))


def test_a_share_of_nothing_is_plain_imitation(tiny_model_dir: Path) -> None:
    want = pull_of(tiny_model_dir, {"imitate": Term(loss=Likelihood())})
    nothing = recipe_terms("pskd", "terms.imitate.loss.target.share=0")
    assert distance(pull_of(tiny_model_dir, nothing), want) < 1e-5
    most = recipe_terms("pskd", "terms.imitate.loss.target.share.warmup_steps=10")
    assert distance(pull_of(tiny_model_dir, most, step=9), want) > 1e-2
