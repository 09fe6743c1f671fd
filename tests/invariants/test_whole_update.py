"""Losses that span an update: their gradient is autograd's through everything at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opd.head import taken_and_entropy
from opd.learner.batch import assemble, pack
from opd.learner.learner import Learner
from opd.learner.model import head_of, hidden_states
from opd.learner.whole import whole_of
from opd.objective.correction import TruncatedImportance
from opd.objective.divergence import ReverseKL
from opd.objective.loss import Distill, PolicyGradient, SequenceLoss
from opd.objective.schedule import Constant
from opd.objective.sequence_loss import (
    MeanCorrected,
    PassedBack,
    Preference,
    ReturnToGo,
    SequencePolicyGradient,
    SuccessClassifier,
)
from opd.objective.term import Term
from opd.objective.weight import FirstTokens
from opd.privileged import Trajectory
from opd.teacher.score import Teacher
from opd.teacher.view import Plain
from opd.teacher.weights import Frozen
from opd.types import Seen, Update
from tests.students import (
    Coupled,
    Rank,
    distance,
    draw_trajectories,
    gradients,
    grouped,
    open_student,
)

DISTIL = Distill(target="solution", divergence=ReverseKL())


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in the same order every time."""
    torch.set_num_threads(1)


def teacher_of(learner: Learner) -> Teacher:
    teacher = Teacher(weights=Frozen(), views={"solution": Plain()})
    teacher.weights.setup(learner)
    return teacher


def step(
    learner: Learner,
    trajectories: Sequence[Trajectory],
    *,
    packing: bool = False,
    tokens_per_batch: int = 10_000,
) -> tuple[Update, dict[str, Tensor]]:
    """One update through micro-batches, and its gradients."""
    batches = pack(trajectories, tokens_per_batch=tokens_per_batch, packing=packing, pad_id=0)
    scores = teacher_of(learner).score(trajectories, batches, ("solution",), learner)
    return learner.update(batches, scores, 0), gradients(learner)


def by_autograd(
    learner: Learner, term: Term, trajectories: Sequence[Trajectory]
) -> tuple[float, dict[str, Tensor]]:
    """The value and gradients of a term from one graph, without chunks, pulls or micro-batches."""
    batch = assemble(trajectories, range(len(trajectories)), packing=False, pad_id=0)
    (scores,) = teacher_of(learner).score(trajectories, [batch], ("solution",), learner)
    weight = term.weight(batch, scores)
    for each in term.weights:
        if isinstance(each, Rank):
            index = weight.nonzero().squeeze(-1)
            cut = {view: seen.rows(index) for view, seen in scores.items()}
            weight[index] *= each.over_update(batch.rows(index), cut)
    loss = term.loss
    assert isinstance(loss, SequenceLoss)
    if isinstance(loss, Coupled):
        weight = weight * (batch.position != 1)
    if isinstance(loss, Preference):
        # The third has no view and the last no other of its problem.
        weight = weight * (batch.sequence < 6)
    hidden = hidden_states(learner.model, batch.student)
    head = head_of(learner.model)
    student = head.logits(hidden).log_softmax(-1)
    values = student.gather(-1, batch.target_ids[:, None]).squeeze(-1)
    if loss.inner is not None:
        said = scores["solution"]
        teacher = said.head.logits(said.hidden).log_softmax(-1).detach()
        values = ReverseKL()(student, teacher)
    index = weight.nonzero().squeeze(-1)
    cut = {view: seen.rows(index) for view, seen in scores.items()}
    own, entropy = taken_and_entropy(student.detach()[index], batch.target_ids[index])
    cut["student"] = Seen(own, entropy, torch.ones_like(own, dtype=torch.bool))
    per_token, _ = loss.sequences(values[index], batch.rows(index), cut)
    counted = batch.rows(index)
    if term.average == "sequence":
        share = 1 / torch.bincount(counted.sequence)[counted.sequence]
    else:
        share = torch.ones_like(per_token)
    value = (share * weight[index] * per_token).sum() / (share * weight[index]).sum()
    learner.optimizer.zero_grad()
    (value * term.coefficient.at(0, 10)).backward()
    return value.item(), gradients(learner)


TERMS = {
    "coupled": Term(loss=Coupled(), average="token", coefficient=Constant(value=0.7)),
    "of divergences": Term(loss=Coupled(distil=DISTIL), average="sequence"),
    "sequence ratios": Term(
        loss=SequencePolicyGradient(clip_low=1.0, clip_high=9.0), average="sequence"
    ),
    "classifier": Term(loss=SuccessClassifier(view="solution"), average="sequence"),
    "preference": Term(loss=Preference(view="solution"), average="sequence"),
    "returns": Term(loss=ReturnToGo(view="solution", clip_low=1.0, clip_high=9.0)),
    "passed back": Term(loss=PassedBack(loss=DISTIL), average="sequence"),
    "mean corrected": Term(
        loss=MeanCorrected(loss=DISTIL, correction=TruncatedImportance()), average="sequence"
    ),
    "weighted": Term(loss=Coupled(), weights=(Rank(), FirstTokens(skip=1, keep=9))),
}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("tokens_per_batch", [1, 40, 10_000])
def test_any_cut_gives_the_gradient_of_the_whole(
    tiny_model_dir: Path, name: str, packing: bool, tokens_per_batch: int
) -> None:
    term = TERMS[name]
    trajectories = grouped(draw_trajectories())
    value, expected = by_autograd(open_student(tiny_model_dir), term, trajectories)
    update, found = step(
        open_student(tiny_model_dir, {"joint": term}),
        trajectories,
        packing=packing,
        tokens_per_batch=tokens_per_batch,
    )
    assert distance(expected, found) < 1e-5
    assert update.metrics["loss/joint"] == pytest.approx(value, rel=1e-4)


def test_beside_other_terms_it_adds_up(tiny_model_dir: Path) -> None:
    trajectories = grouped(draw_trajectories())
    terms = {"joint": TERMS["coupled"], "reinforce": Term(loss=PolicyGradient())}
    _, both = step(open_student(tiny_model_dir, terms), trajectories, tokens_per_batch=40)
    alone = [
        step(open_student(tiny_model_dir, {name: term}), trajectories)[1]
        for name, term in terms.items()
    ]
    assert distance(both, {name: alone[0][name] + alone[1][name] for name in both}) < 1e-5


def test_the_order_of_groups_changes_nothing(tiny_model_dir: Path) -> None:
    trajectories = grouped(draw_trajectories())
    turned = [*trajectories[6:], *trajectories[:3], *trajectories[3:6]]
    terms = {"joint": TERMS["coupled"]}
    _, first = step(open_student(tiny_model_dir, terms), trajectories, tokens_per_batch=40)
    _, second = step(open_student(tiny_model_dir, terms), turned, tokens_per_batch=60)
    assert distance(first, second) < 1e-5


def test_nothing_to_learn_from_gives_zero(tiny_model_dir: Path) -> None:
    blind = [Trajectory(t.rollout, t.verdict, t.advantage, 0.5, {}) for t in draw_trajectories()]
    terms = {"joint": Term(loss=SequencePolicyGradient(), weights=(FirstTokens(skip=99),))}
    update, found = step(open_student(tiny_model_dir, terms), blind)
    assert all(not value.any() for value in found.values())
    assert "loss/joint" not in update.metrics
    update = open_student(tiny_model_dir, terms).update([], [], 0)
    assert update.grad_norm == 0


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 10_000])
def test_the_whole_is_in_the_order_of_the_rollouts(tokens_per_batch: int) -> None:
    trajectories = grouped(draw_trajectories())[::-1]
    batches = pack(trajectories, tokens_per_batch=tokens_per_batch, packing=False, pad_id=0)
    whole = whole_of(batches, [{} for _ in batches], ())
    assert whole is not None
    tokens = whole.tokens
    ids = [token for t in trajectories for token in t.rollout.token_ids]
    assert tokens.target_ids.tolist() == ids
    assert tokens.advantage.tolist() == pytest.approx([t.advantage for t in trajectories])
    assert tokens.group.tolist() == [0, 1, 1, 1, 4, 4, 4]
    assert tokens.members == tuple(range(7))
    sampled = [batch.sampled_logprob for batch in batches]
    assert torch.equal(whole.gathered(sampled), tokens.sampled_logprob)
    for there, back in zip(sampled, whole.own(whole.gathered(sampled)), strict=True):
        assert torch.equal(there, back)
