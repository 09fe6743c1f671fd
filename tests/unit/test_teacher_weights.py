"""Whose parameters teach: what stays, what follows, what a teacher may not touch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoTokenizer

from opd.errors import RecipeError
from opd.learner.batch import pack
from opd.learner.learner import Learner
from opd.learner.model import merged_weights
from opd.parts import restore_state, state_of
from opd.privileged import Trajectory
from opd.teacher.score import Teacher
from opd.teacher.view import Plain
from opd.teacher.weights import EMA, External, Frozen, Live, Periodic, TeacherWeights
from opd.types import Batch
from tests.conftest import save_random_model
from tests.students import draw_trajectories, open_student


@pytest.fixture
def trajectories() -> list[Trajectory]:
    return draw_trajectories()


def in_one(trajectories: list[Trajectory]) -> list[Batch]:
    return pack(trajectories, tokens_per_batch=10_000, packing=False, pad_id=0)


def teach(weights: TeacherWeights) -> Teacher:
    return Teacher(weights=weights, views={"solution": Plain()})


def scored(teacher: Teacher, trajectories: list[Trajectory], learner: Learner) -> Tensor:
    """`[N]` log-probs of the taken tokens under the teacher."""
    scores = teacher.score(trajectories, in_one(trajectories), ("solution",), learner)[0]
    return scores["solution"].logprob


def train(learner: Learner, teacher: Teacher, trajectories: list[Trajectory], steps: int) -> None:
    for step in range(steps):
        batches = in_one(trajectories)
        scores = teacher.score(trajectories, batches, ("solution",), learner)
        learner.update(batches, scores, step)
        teacher.weights.follow(learner)


def snapshot(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in merged_weights(learner.model)}


@pytest.mark.parametrize("lora", [False, True])
def test_frozen_is_the_initial_model_for_all_steps(
    tiny_model_dir: Path, trajectories: list[Trajectory], lora: bool
) -> None:
    learner, teacher = open_student(tiny_model_dir, lora=lora), teach(Frozen())
    teacher.weights.setup(learner)
    initial = scored(teach(Live()), trajectories, open_student(tiny_model_dir))
    assert torch.equal(scored(teacher, trajectories, learner), initial)
    before = snapshot(learner)
    train(learner, teacher, trajectories, 3)
    assert any(not torch.equal(before[n], t) for n, t in merged_weights(learner.model))
    assert torch.equal(scored(teacher, trajectories, learner), initial)


@pytest.mark.parametrize("lora", [False, True])
def test_live_moves_with_the_student(
    tiny_model_dir: Path, trajectories: list[Trajectory], lora: bool
) -> None:
    learner, teacher = open_student(tiny_model_dir, lora=lora), teach(Live())
    before = scored(teacher, trajectories, learner)
    train(learner, teacher, trajectories, 2)
    assert (scored(teacher, trajectories, learner) - before).abs().max() > 1e-3


@pytest.mark.parametrize("lora", [False, True])
def test_ema_is_the_average_of_the_merged_weights(
    tiny_model_dir: Path, trajectories: list[Trajectory], lora: bool
) -> None:
    """The average of B·A, not the product of averages of A and of B."""
    learner, teacher = open_student(tiny_model_dir, lora=lora), teach(EMA(decay=0.7))
    teacher.weights.setup(learner)
    average = snapshot(learner)
    for _ in range(4):
        train(learner, teacher, trajectories, 1)
        for name, tensor in merged_weights(learner.model):
            average[name] = 0.7 * average[name] + 0.3 * tensor
    expected = open_student(tiny_model_dir)
    expected.model.load_state_dict(average, strict=False)
    want = scored(teach(Live()), trajectories, expected)
    assert torch.allclose(scored(teacher, trajectories, learner), want, atol=1e-4)
    assert (want - scored(teach(Live()), trajectories, learner)).abs().max() > 1e-3


def test_ema_by_hand(tiny_model_dir: Path) -> None:
    """decay .95 from 1 toward 2: 1.05, then 1.0975."""
    learner, ema = open_student(tiny_model_dir), EMA(decay=0.95)
    for parameter in learner.parameters:
        parameter.data.fill_(1.0)
    ema.setup(learner)
    for parameter in learner.parameters:
        parameter.data.fill_(2.0)
    assert ema.average is not None
    for want in (1.05, 1.0975):
        ema.follow(learner)
        assert all(torch.allclose(p, torch.tensor(want)) for p in ema.average.parameters())


@pytest.mark.parametrize("lora", [False, True])
def test_ema_state_goes_on_bit_for_bit(
    tiny_model_dir: Path, trajectories: list[Trajectory], lora: bool
) -> None:
    learner, teacher = open_student(tiny_model_dir, lora=lora), teach(EMA(decay=0.7))
    teacher.weights.setup(learner)
    train(learner, teacher, trajectories, 2)
    again = teach(EMA(decay=0.7))
    again.weights.setup(learner)
    restore_state(again, state_of(teacher))
    before = scored(teacher, trajectories, learner)
    assert torch.equal(scored(again, trajectories, learner), before)
    again.weights.follow(learner)
    assert torch.equal(scored(teacher, trajectories, learner), before), "a state is no loan"


@pytest.mark.parametrize("weights", [Live(), Frozen(), EMA(decay=0.5)])
@pytest.mark.parametrize("lora", [False, True])
def test_scoring_leaves_the_student_as_it_was(
    tiny_model_dir: Path, trajectories: list[Trajectory], weights: TeacherWeights, lora: bool
) -> None:
    learner, teacher = open_student(tiny_model_dir, lora=lora), teach(weights)
    weights.setup(learner)
    before = snapshot(learner)
    batches = in_one(trajectories)
    context, targets = batches[0].student, batches[0].target_ids
    own = learner.logprobs(context, targets)
    scores = teacher.score(trajectories, batches, ("solution",), learner)
    assert all(torch.equal(before[n], t) for n, t in merged_weights(learner.model))
    assert torch.equal(learner.logprobs(context, targets), own)
    assert all(p.grad is None for p in learner.model.parameters())
    assert not scores[0]["solution"].hidden.requires_grad


def test_external_refuses_another_vocabulary(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config.from_pretrained(tiny_model_dir)
    config.vocab_size += 1
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"vocabulary entries"):
        External(path=str(tmp_path)).setup(open_student(tiny_model_dir))


def test_external_scores_with_the_other_model(
    tiny_model_dir: Path, tied_model_dir: Path, trajectories: list[Trajectory]
) -> None:
    learner, teacher = open_student(tiny_model_dir), teach(External(path=str(tied_model_dir)))
    teacher.weights.setup(learner)
    want = scored(teach(Live()), trajectories, open_student(tied_model_dir))
    assert torch.equal(scored(teacher, trajectories, learner), want)


def test_what_is_too_long_for_another_model_is_absent(
    tiny_model_dir: Path, tmp_path: Path, trajectories: list[Trajectory]
) -> None:
    lengths = [len(t.views["solution"]) + len(t.rollout.token_ids) for t in trajectories if t.views]
    longest = sorted(lengths)[3]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    short = save_random_model(tmp_path / "short", tokenizer, context_length=longest)
    learner, teacher = open_student(tiny_model_dir), teach(External(path=str(short)))
    teacher.weights.setup(learner)
    batches = in_one(trajectories)
    for batch, found in zip(
        batches, teacher.score(trajectories, batches, ("solution",), learner), strict=True
    ):
        here = found["solution"].present
        for row, member in enumerate(batch.members):
            views, response = trajectories[member].views, trajectories[member].rollout.token_ids
            fits = bool(views) and len(views["solution"]) + len(response) <= longest
            assert here[batch.sequence == row].tolist() == [fits] * len(response)


@pytest.mark.parametrize("lora", [False, True])
def test_views_are_scored_by_weights_of_their_own(
    tiny_model_dir: Path, trajectories: list[Trajectory], lora: bool
) -> None:
    """The anchor stays, the student moves with itself, and the average lies behind it."""
    learner = open_student(tiny_model_dir, lora=lora)
    names = ("anchor", "lagging", "student", "initial")
    teacher = Teacher(
        weights=EMA(decay=0.7),
        views={name: Plain() for name in names},
        weights_by_view={"anchor": Frozen(), "student": Live(), "initial": Frozen()},
    )
    seen = [replace(t, views=dict.fromkeys(names, t.rollout.prompt_ids)) for t in trajectories]
    teacher.setup(learner)
    # Equal weights are one copy.
    assert teacher.weights_of("anchor") is teacher.weights_of("initial")
    assert len(teacher.held) == 3
    batches = in_one(seen)

    def logprobs() -> dict[str, Tensor]:
        scores = teacher.score(seen, batches, names, learner)[0]
        assert list(scores) == [*names]
        return {name: scores[name].logprob for name in names}

    before = logprobs()
    for parameter in learner.parameters:
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    teacher.follow(learner)
    after = logprobs()
    own = learner.logprobs(batches[0].student, batches[0].target_ids)
    assert torch.equal(after["anchor"], before["anchor"])
    assert torch.allclose(after["student"], own, atol=1e-5)
    assert (after["student"] - before["student"]).abs().max() > 1e-3
    gaps = {name: (after[name] - own).abs().mean() for name in names}
    assert gaps["student"] < gaps["lagging"] < gaps["anchor"]


def test_weights_of_an_unknown_view_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"names the view 'plain', but views holds solution"):
        Teacher(views={"solution": Plain()}, weights_by_view={"plain": Live()})


@pytest.mark.parametrize("lora", [False, True])
def test_a_periodic_copy_by_hand(
    tiny_model_dir: Path, trajectories: list[Trajectory], lora: bool
) -> None:
    """Every 3: the initial weights before updates 0, 1 and 2, then those after update 2."""
    learner, periodic = open_student(tiny_model_dir, lora=lora), Periodic(every=3)
    teacher, live = teach(periodic), teach(Live())
    periodic.setup(learner)
    student, copied = [], []
    for step in range(7):
        student.append(scored(live, trajectories, learner))
        copied.append(scored(teacher, trajectories, learner))
        for parameter in learner.parameters:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.01)
        periodic.follow(learner)
        if step == 4:  # a resumed run counts on
            again = Periodic(every=3)
            again.setup(learner)
            again.load_state_dict(periodic.state_dict())
            teacher, periodic = teach(again), again
    for step, source in enumerate((0, 0, 0, 3, 3, 3, 6)):
        assert torch.allclose(copied[step], student[source], atol=1e-5)
    assert (student[3] - student[0]).abs().max() > 1e-3


def test_an_average_may_move_every_few_steps(tiny_model_dir: Path) -> None:
    learner, ema = open_student(tiny_model_dir), EMA(decay=0.95, every=2)
    for parameter in learner.parameters:
        parameter.data.fill_(1.0)
    ema.setup(learner)
    for parameter in learner.parameters:
        parameter.data.fill_(2.0)
    for want in (1.0, 1.05, 1.05, 1.0975):
        ema.follow(learner)
        assert all(torch.allclose(p, torch.tensor(want)) for p in ema.average.parameters())
