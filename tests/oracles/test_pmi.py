"""arXiv 2607.02234: what the question adds to the reference, by the numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from opd.objective.divergence import JSD
from opd.objective.loss import Distill
from opd.objective.target import Shifted
from opd.objective.term import Term
from tests.rows import D0_STUDENT, D0_TEACHER, logs, pulled, said_by
from tests.students import distance, pull_of, recipe_terms

REFERENCE = (0.6, 0.1, 0.3)


def shifted(beta: float = 1.0) -> Shifted:
    """The recipe's, of views with short names."""
    loss = recipe_terms("pmi", f"terms.distil.loss.target.beta={beta}")["distil"].loss
    assert isinstance(loss, Distill) and isinstance(loss.target, Shifted)
    return replace(loss.target, view="q", less="r", anchor="base")


@pytest.mark.parametrize(
    ("beta", "want"),
    [
        (1.0, (0.350256383, 0.599530825, 0.050212792)),
        (2.0, (0.388191594, 0.507877364, 0.103931042)),
        (1e9, D0_STUDENT),
    ],
)
def test_the_target(beta: float, want: tuple[float, ...]) -> None:
    """The first entry, which the raw teacher raises from .4 to .7, is lowered."""
    found = said_by(shifted(beta), D0_STUDENT, q=D0_TEACHER, r=REFERENCE, base=D0_STUDENT)
    assert found == pytest.approx(want, abs=1e-8)
    if beta == 1:
        loss = Distill(target=shifted(), divergence=JSD())
        value, pull, _ = pulled(loss, D0_STUDENT, q=D0_TEACHER, r=REFERENCE, base=D0_STUDENT)
        assert value == pytest.approx(0.034845942, abs=1e-8)
        assert pull[0] > 0 > pull[1]


def test_what_the_question_adds() -> None:
    """log q - log r, less its mean over the vocabulary: which a far bound leaves as it is."""
    said = {"q": logs(D0_TEACHER), "r": logs(REFERENCE), "base": logs(D0_STUDENT)}
    moved, _ = replace(shifted(), bound=1e6)(said["base"], said, torch.tensor([0]))
    centred = (moved - said["base"])[0]
    assert centred.tolist() == pytest.approx((0.237922156, 0.776918657, -1.014840813), abs=1e-8)
    whole = centred + (said["q"] - said["r"]).mean()
    assert whole.tolist() == pytest.approx((0.154150680, 0.693147181, -1.098612289), abs=1e-8)


def test_most_of_what_a_teacher_says_is_the_references() -> None:
    """Its whole shift from the student is what the reference says by itself and what the question
    adds to that; their angles and sizes, at the initial student."""
    said = {"q": logs(D0_TEACHER), "r": logs(REFERENCE), "base": logs(D0_STUDENT)}

    def shift(view: str, less: str) -> torch.Tensor:
        target = replace(shifted(), view=view, less=less, bound=1e6)
        moved, _ = target(said["base"], said, torch.tensor([0]))
        return (moved - said["base"])[0] + (said[view] - said[less]).mean()

    whole, reference, question = shift("q", "base"), shift("r", "base"), shift("q", "r")
    found = [
        cosine_similarity(whole, reference, 0).item(),
        cosine_similarity(whole, question, 0).item(),
        (reference.norm() / whole.norm()).item(),
    ]
    assert found == pytest.approx((0.535483124, 0.248766435, 1.329085911), abs=1e-8)


def test_a_question_that_adds_nothing_leaves_the_anchor() -> None:
    found = said_by(shifted(), (0.1, 0.1, 0.8), q=D0_TEACHER, r=D0_TEACHER, base=D0_STUDENT)
    assert found == pytest.approx(D0_STUDENT)


def test_what_a_side_excludes_is_excluded_and_moves_no_mean() -> None:
    said = {name: logs((*row, 0.0)) for name, row in (("q", D0_TEACHER), ("r", REFERENCE))}
    said["base"] = logs((*D0_STUDENT, 0.0))
    found = shifted()(said["base"], said, torch.tensor([0]))[0].softmax(-1)[0].tolist()
    assert found == pytest.approx((0.350256383, 0.599530825, 0.050212792, 0.0), abs=1e-8)


def test_without_a_shift_it_is_distillation_from_the_anchor(tiny_model_dir: Path) -> None:
    """Which at the first step is the student itself."""
    terms = recipe_terms("pmi", "terms.distil.loss.target.beta=1e9")
    still = pull_of(tiny_model_dir, terms)
    moved = pull_of(tiny_model_dir, recipe_terms("pmi"))
    want = pull_of(tiny_model_dir, {"distil": Term(loss=Distill(target="plain", divergence=JSD()))})
    assert all(float((still[n] - want[n]).abs().max()) < 1e-6 for n in want)
    assert distance(still, moved) > 0.9
