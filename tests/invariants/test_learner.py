"""What must not change a gradient, and what must."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from opd.errors import NumericError
from opd.learner import chunks
from opd.learner.batch import pack
from opd.learner.learner import Learner
from opd.objective.divergence import JSD, ForwardKL, ReverseKL
from opd.objective.loss import Distill, Likelihood, PolicyGradient, SampledReverseKL
from opd.objective.term import Term
from opd.objective.weight import Only, PassRate
from opd.privileged import Trajectory
from opd.teacher.score import Teacher
from opd.teacher.view import Plain
from opd.teacher.weights import Frozen, Live
from tests.students import distance, distil, draw_trajectories, gradients, open_student

TERMS = {
    "distil": Term(loss=Distill(target="solution", divergence=JSD()), weights=(PassRate(),)),
    "sampled": Term(loss=SampledReverseKL(view="solution"), average="sequence"),
    "reinforce": Term(loss=PolicyGradient(), average="budget"),
    "imitate": Term(loss=Likelihood(), weights=(Only(when="success"),)),
}


Student = Callable[..., Learner]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in the same order every time."""
    torch.set_num_threads(1)


@pytest.fixture
def student(tiny_model_dir: Path) -> Student:
    return partial(open_student, tiny_model_dir)


@pytest.fixture
def trajectories() -> list[Trajectory]:
    return draw_trajectories()


def step(
    learner: Learner,
    trajectories: Sequence[Trajectory],
    *,
    packing: bool = False,
    tokens_per_batch: int = 10_000,
    teacher: Teacher | None = None,
    views: tuple[str, ...] = ("solution",),
) -> dict[str, torch.Tensor]:
    """Take one update; the gradients after clipping are what the optimizer was given."""
    teacher = teacher or Teacher(weights=Frozen(), views={"solution": Plain()})
    teacher.weights.setup(learner)
    batches = pack(trajectories, tokens_per_batch=tokens_per_batch, packing=packing, pad_id=0)
    learner.update(batches, teacher.score(trajectories, batches, views, learner), 0)
    return gradients(learner)


def test_packed_equals_padded(student: Student, trajectories: list[Trajectory]) -> None:
    padded = step(student(TERMS), trajectories)
    assert distance(padded, step(student(TERMS), trajectories, packing=True)) < 1e-5


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 90])
@pytest.mark.parametrize("packing", [False, True])
def test_micro_batches_change_nothing(
    student: Student, trajectories: list[Trajectory], tokens_per_batch: int, packing: bool
) -> None:
    whole = step(student(TERMS), trajectories)
    split = step(student(TERMS), trajectories, packing=packing, tokens_per_batch=tokens_per_batch)
    assert distance(whole, split) < 1e-5


def test_any_chunk_size(
    student: Student, trajectories: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = step(student(TERMS), trajectories)
    monkeypatch.setattr(chunks, "chunk_size", lambda vocabulary, device: 3)
    assert distance(whole, step(student(TERMS), trajectories)) < 1e-5


def test_gradient_checkpointing_changes_nothing(
    student: Student, trajectories: list[Trajectory]
) -> None:
    plain = step(student(TERMS), trajectories)
    checkpointed = step(student(TERMS, gradient_checkpointing=True), trajectories)
    assert distance(plain, checkpointed) < 1e-5


def test_order_of_trajectories_changes_nothing(
    student: Student, trajectories: list[Trajectory]
) -> None:
    forward = step(student(TERMS), trajectories)
    assert distance(forward, step(student(TERMS), trajectories[::-1])) < 1e-5


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JSD()])
@pytest.mark.parametrize("lora", [False, True])
def test_a_teacher_that_equals_the_student_teaches_nothing(
    student: Student, trajectories: list[Trajectory], divergence, lora: bool
) -> None:
    same = [replace(t, views={"solution": t.rollout.prompt_ids}) for t in trajectories]
    terms = {"distil": Term(loss=Distill(target="solution", divergence=divergence))}
    teacher = Teacher(weights=Live(), views={"solution": Plain()})
    found = step(student(terms, lora=lora), same, teacher=teacher)
    assert max(float(value.abs().max()) for value in found.values()) < 1e-7


def test_the_teacher_changes_the_gradient(student: Student, trajectories: list[Trajectory]) -> None:
    found = step(student(), trajectories)
    assert max(float(value.abs().max()) for value in found.values()) > 1e-4


def test_an_absent_view_contributes_nothing(
    student: Student, trajectories: list[Trajectory]
) -> None:
    present = [t for t in trajectories if t.views]
    assert len(present) < len(trajectories)
    assert distance(step(student(), trajectories), step(student(), present)) < 1e-5


def test_views_that_nobody_has_give_zero(student: Student, trajectories: list[Trajectory]) -> None:
    blind = [replace(t, views={}) for t in trajectories]
    found = step(student(), blind)
    assert all(bool((value == 0).all()) for value in found.values())


def test_a_mean_over_nothing_is_not_reported(
    student: Student, trajectories: list[Trajectory]
) -> None:
    found = []
    for some in (trajectories, [replace(t, views={}) for t in trajectories]):
        learner = student({"distil": distil("solution"), "imitate": Term(loss=Likelihood())})
        teacher = Teacher(weights=Live(), views={"solution": Plain()})
        batches = pack(some, tokens_per_batch=10_000, packing=False, pad_id=0)
        update = learner.update(batches, teacher.score(some, batches, ("solution",), learner), 0)
        found.append({name for name in update.metrics if name.endswith("/solution")})
    assert {"teacher_gap/solution", "teacher_entropy/solution"} < found[0]
    assert found[1] == {"teacher_present/solution"}


def test_disjoint_terms_add_up(student: Student, trajectories: list[Trajectory]) -> None:
    won = {"won": distil("solution", Only(when="success"))}
    lost = {"lost": distil("solution", Only(when="failure"))}
    both = step(student({**won, **lost}), trajectories)
    alone = [step(student(term), trajectories) for term in (won, lost)]
    summed = {name: alone[0][name] + alone[1][name] for name in both}
    assert distance(both, summed) < 1e-5


def test_a_term_is_a_mean(student: Student, trajectories: list[Trajectory]) -> None:
    """Twice the same rollouts: the same gradient."""
    once = step(student(TERMS), trajectories)
    assert distance(once, step(student(TERMS), [*trajectories, *trajectories])) < 1e-5


def test_prompts_are_context_and_no_targets(
    student: Student, trajectories: list[Trajectory]
) -> None:
    (batch,) = pack(trajectories, tokens_per_batch=10_000, packing=True, pad_id=0)
    responses = sorted(t.rollout.token_ids for t in trajectories)
    assert batch.tokens == sum(map(len, responses))
    split = torch.split(batch.target_ids, torch.bincount(batch.sequence).tolist())
    assert sorted(tuple(part.tolist()) for part in split) == responses


@pytest.mark.parametrize("packing", [False, True])
def test_a_context_predicts_the_tokens_that_follow(
    trajectories: list[Trajectory], packing: bool
) -> None:
    for batch in pack(trajectories, tokens_per_batch=10_000, packing=packing, pad_id=0):
        following = batch.student.input_ids.flatten()[batch.student.predict_at + 1]
        assert torch.equal(following, batch.target_ids)


def test_pad_tokens_never_matter(student: Student, trajectories: list[Trajectory]) -> None:
    found = []
    for pad_id in (0, 7):
        learner = student(TERMS)
        teacher = Teacher(weights=Frozen(), views={"solution": Plain()})
        teacher.weights.setup(learner)
        batches = pack(trajectories, tokens_per_batch=10_000, packing=False, pad_id=pad_id)
        learner.update(batches, teacher.score(trajectories, batches, ("solution",), learner), 0)
        found.append(gradients(learner))
    assert distance(*found) == 0


def test_a_gradient_that_is_not_finite_changes_no_weight(
    student: Student, trajectories: list[Trajectory]
) -> None:
    learner = student({"reinforce": Term(loss=PolicyGradient())})
    broken = [replace(t, advantage=math.inf) for t in trajectories]
    before = {n: p.clone() for n, p in learner.model.named_parameters()}
    with pytest.raises(NumericError, match="gradient norm"):
        step(learner, broken, views=())
    for name, parameter in learner.model.named_parameters():
        assert torch.equal(before[name], parameter)


def test_coefficient_zero_skips_a_term(student: Student, trajectories: list[Trajectory]) -> None:
    off = {"imitate": Term(loss=Likelihood()), "off": distil("solution", coefficient=0.0)}
    on = {"imitate": Term(loss=Likelihood())}
    learner = student(off)
    assert list(learner.active(0)) == ["imitate"]
    assert distance(step(learner, trajectories, views=()), step(student(on), trajectories)) < 1e-6
