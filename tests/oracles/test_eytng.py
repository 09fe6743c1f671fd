"""arXiv 2102.13088: ground truth in the target of every round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opd.objective.divergence import CrossEntropy, ForwardKL
from opd.objective.loss import Distill
from opd.objective.schedule import Constant
from opd.objective.target import Mixed, entropy
from tests.rows import A_STUDENT, A_TEACHER, logs, pulled, said_by
from tests.students import distance, distil, pull_of, recipe_terms


@pytest.mark.parametrize(("share", "nats"), [(0.0, 1.3862944), (0.5, 1.1436928), (1.0, 0.9010913)])
def test_the_loss_lies_between_imitation_and_distillation(share: float, nats: float) -> None:
    """(1 - share) (-log s(y)) + share CE(q, s), with CE(q, s) = 0.9010913."""
    target = Mixed(view="q", share=Constant(value=share))
    value = pulled(Distill(target=target, divergence=CrossEntropy()), A_STUDENT, 1, q=A_TEACHER)[0]
    assert value == pytest.approx(nats, abs=1e-6)


def test_rounds_keep_the_truth_that_is_mixed_in() -> None:
    """A learner that keeps a share .8 of what it is shown and forgets the rest to indifference: f
    <- .8 (a + (1 - a) f) for a share a of ground truth, whose fixed point is .8 a / (1 - .8 (1 -
    a)) = .6666667 at a half; with none of it .8^5 = .32768 is left after five rounds."""
    for share, rounds, left in ((0.5, 1, 0.8), (0.5, 200, 0.6666667), (1.0, 5, 0.32768)):
        target = recipe_terms("eytng", f"terms.imitate.loss.target.share={share}")["imitate"].loss
        assert isinstance(target, Distill) and isinstance(target.target, Mixed)
        sure = 1.0
        for _ in range(rounds):
            last = ((1 + sure) / 2, (1 - sure) / 2 + 1e-300)
            shown = said_by(target.target, (0.5, 0.5), 0, solution=last)[0]
            sure = 0.8 * (2 * shown - 1)
        assert sure == pytest.approx(left, abs=1e-6)


def test_without_ground_truth_it_is_plain_distillation(tiny_model_dir: Path) -> None:
    terms = recipe_terms("eytng", "terms.imitate.loss.target.share=1")
    want = pull_of(tiny_model_dir, {"distil": distil("solution")})
    assert distance(pull_of(tiny_model_dir, terms), want) < 1e-5
    mixed = recipe_terms("eytng")["imitate"]
    assert isinstance(mixed.loss, Distill)
    kl = {"imitate": replace(mixed, loss=replace(mixed.loss, divergence=ForwardKL()))}
    found = pull_of(tiny_model_dir, {"imitate": mixed})
    assert distance(pull_of(tiny_model_dir, kl), found) < 1e-5
    assert entropy(logs(A_TEACHER)).item() == pytest.approx(0.8018186, abs=1e-6)
