"""arXiv 2605.06387: which tokens are reinforced and which are taught."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.loss import SampledReverseKL
from opd.objective.weight import Leaning
from tests.batches import batch_of, scores_of, seen_of
from tests.rows import A_STUDENT, A_TEACHER
from tests.students import distance, distil, draw_trajectories, recipe_terms, update_of


def test_tokens_come_apart_by_what_the_teacher_thinks_of_them() -> None:
    """Advantages .336472, -.223144, -.916291; the last token's teacher is absent."""
    own, said = torch.tensor(A_STUDENT).log(), torch.tensor(A_TEACHER).log()
    batch = batch_of([5], sampled_logprob=torch.cat([own, own[:1], torch.tensor([float("nan")])]))
    logprob = [*said.tolist(), 0.0, 0.0]
    scores = {"q": scores_of(5, logprob=logprob, present=[True, True, True, False, True])}
    raised, lowered = (
        Leaning(view="q", when=when)(batch, scores) for when in ("raised", "lowered")
    )
    assert raised.tolist() == [1, 0, 0, 0, 0]
    assert lowered.tolist() == [0, 1, 1, 0, 0]


def test_what_is_reinforced_rises_by_its_advantage() -> None:
    own = torch.tensor(A_STUDENT).log().requires_grad_()
    said = seen_of(torch.tensor(A_TEACHER).log().tolist())
    loss, _ = SampledReverseKL(view="q").tokens(own, batch_of([3]), {"q": said})
    (pull,) = torch.autograd.grad(loss.sum(), own)
    assert (-pull).tolist() == pytest.approx((0.336472, -0.223144, -0.916291), abs=1e-6)
    # In expectation over the student's own tokens it is minus reverse KL.
    assert (-pull * own.detach().exp()).sum().item() == pytest.approx(-0.1166225, abs=1e-6)


def test_with_one_loss_for_both_it_is_plain_distillation(tiny_model_dir: Path) -> None:
    """Every other token was sampled by a policy that liked it less than the teacher does."""
    trajectories = []
    for each in draw_trajectories():
        logprobs = tuple(-100.0 * (at % 2) for at in range(len(each.rollout.token_ids)))
        trajectories.append(replace(each, rollout=replace(each.rollout, logprobs=logprobs)))
    terms = recipe_terms("aopd")
    _, want = update_of(tiny_model_dir, {"distil": distil("solution")}, trajectories)
    alike = {**terms, "reinforce": replace(terms["reinforce"], loss=terms["teach"].loss)}
    assert distance(update_of(tiny_model_dir, alike, trajectories)[1], want) < 1e-5
    assert distance(update_of(tiny_model_dir, terms, trajectories)[1], want) > 1e-2
