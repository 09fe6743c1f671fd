"""Texts that suit a student: which sentences teach, and what colder samples are drawn from."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from opd.config import build, load_recipe
from opd.objective.logits import Logits
from opd.objective.loss import Likelihood
from opd.recipe import Recipe
from opd.rollout.taught import balance, means, split

TEACHER, STUDENT = (0.9, 0.8, 0.95), (0.3, 0.2, 0.5)


def test_a_sentence_that_teaches() -> None:
    (sentence,) = split(["so ", "it ", "is."], ".")
    (theirs,) = means([log(p) for p in TEACHER], [sentence])
    (mine,) = means([log(p) for p in STUDENT], [sentence])
    assert exp(theirs) == pytest.approx(0.8810868, abs=1e-6)
    assert exp(mine) == pytest.approx(0.3107233, abs=1e-6)
    assert theirs - mine == pytest.approx(1.0422535, abs=1e-6)
    assert balance([theirs - mine], [3], log(2)) == 1.0
    assert balance([mine - theirs], [3], log(2)) == -1.0


def test_colder_samples_come_from_a_sharper_row() -> None:
    cold = Logits(torch.tensor([[0.7, 0.2, 0.1]]).log()).log_probs(0.6).exp()
    assert cold[0].tolist() == pytest.approx([0.859859, 0.106573, 0.033568], abs=1e-6)


def test_a_stage_is_plain_imitation() -> None:
    """Only the source parts it from likelihood of the same texts."""
    ours, plain = (build(Recipe, load_recipe(name)) for name in ("dasd", "seqkd"))
    assert ours.terms == plain.terms and isinstance(ours.terms["imitate"].loss, Likelihood)
    assert ours.optimizer == plain.optimizer
