"""Micro-batches: budgets, order, and what of a trajectory they carry."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from opd.learner.batch import assemble, fill, pack, packed_rows, positions
from opd.privileged import Trajectory
from tests.students import draw_trajectories


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("budget", [30, 50, 80, 1000])
def test_no_batch_exceeds_the_budget_unless_it_holds_one(budget: int, packing: bool) -> None:
    trajectories = draw_trajectories()
    batches = pack(trajectories, tokens_per_batch=budget, packing=packing, pad_id=0)
    assert sum(batch.sequences for batch in batches) == len(trajectories)
    assert sum(batch.tokens for batch in batches) == sum(
        len(t.rollout.token_ids) for t in trajectories
    )
    for batch in batches:
        assert batch.student.input_ids.numel() <= budget or batch.sequences == 1


def test_what_teachers_read_changes_no_batch() -> None:
    trajectories = draw_trajectories()
    blind = [replace(t, views={}) for t in trajectories]
    seeing = [replace(t, views={"solution": (5,) * 3 ** (n % 5)}) for n, t in enumerate(blind)]
    members = [
        [batch.members for batch in pack(some, tokens_per_batch=50, packing=False, pad_id=0)]
        for some in (trajectories, blind, seeing)
    ]
    assert members[0] == members[1] == members[2] and len(members[0]) > 2


def test_bins_hold_what_fits_shortest_first() -> None:
    assert positions([2, 5], packing=False) == 10 and positions([2, 5], packing=True) == 7
    assert fill([5, 2, 9, 2], 8, packing=True) == [[1, 3], [0], [2]]
    assert fill([5, 2, 4, 2], 8, packing=True, before=1) == [[1, 3], [2], [0]]
    assert fill([3, 5], 8, packing=True) == [[0, 1]]
    assert fill([], 8, packing=True) == []


def test_padding_is_at_most_a_quarter() -> None:
    lengths = [3, 6, 7, 8, 2, 14]
    # 11 of 18 positions would be real with 2, 3 and 6; 6, 7 and 8 fill 21 of 24.
    assert fill(lengths, 999, packing=False) == [[4, 0], [1, 2, 3], [5]]
    assert fill(lengths, 999, packing=True) == [[4, 0, 1, 2, 3, 5]]
    assert fill([6, 8, 8, 8], 999, packing=False) == [[0, 1, 2, 3]]
    assert fill([4, 8], 999, packing=False) == [[0, 1]]
    assert fill([3, 8], 999, packing=False) == [[0], [1]]


@pytest.mark.parametrize("budget", [50, 1000])
def test_micro_batches_hold_little_padding(budget: int) -> None:
    trajectories = draw_trajectories()
    lengths = [len(t.rollout.prompt_ids) + len(t.rollout.token_ids) for t in trajectories]
    batches = pack(trajectories, tokens_per_batch=budget, packing=False, pad_id=0)
    assert sum(batch.student.input_ids.numel() for batch in batches) <= sum(lengths) / 0.75


def written(trajectory: Trajectory) -> Trajectory:
    unknown = (math.nan,) * len(trajectory.rollout.token_ids)
    return replace(trajectory, rollout=replace(trajectory.rollout, logprobs=unknown))


def test_written_tokens_have_no_sampling_policy() -> None:
    first, second = draw_trajectories()[:2]
    (batch,) = pack([first, written(second)], tokens_per_batch=999, packing=False, pad_id=0)
    sampled = batch.sequence == 0
    assert batch.sampled_logprob[~sampled].isnan().all()
    assert torch.equal(batch.sampled_logprob[sampled], torch.tensor(first.rollout.logprobs))


def test_every_sequence_keeps_its_own_verdict() -> None:
    trajectories = draw_trajectories()
    (batch,) = pack(trajectories[::-1], tokens_per_batch=999, packing=True, pad_id=0)
    ordered = [trajectories[::-1][member] for member in batch.members]
    lengths = [len(t.rollout.prompt_ids) + len(t.rollout.token_ids) for t in ordered]
    assert len(lengths) == len(trajectories) and lengths == sorted(lengths)
    assert batch.advantage.tolist() == pytest.approx([t.advantage for t in ordered])
    assert batch.success.tolist() == [t.verdict.success for t in ordered]
    assert batch.position.tolist() == [i for t in ordered for i in range(len(t.rollout.token_ids))]


def test_packed_positions_restart() -> None:
    """Rotary positions are relative and would not tell; learned ones would."""
    ids, positions_of, boundaries = packed_rows([(5, 6, 7), (8,), (9, 10)])
    assert ids.tolist() == [[5, 6, 7, 8, 9, 10]]
    assert positions_of.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert boundaries.tolist() == [0, 3, 4, 6]


@pytest.mark.parametrize("packing", [False, True])
def test_a_view_may_stand_before_the_responses(packing: bool) -> None:
    trajectories = draw_trajectories()
    (batch,) = pack(trajectories, tokens_per_batch=999, packing=True, pad_id=0, context="solution")
    assert batch.context == "solution" and sorted(batch.members) == [0, 1, 3, 4, 5, 6]
    assert batch.student.boundaries is not None
    ends = pairwise(batch.student.boundaries.tolist())
    for member, (start, end) in zip(batch.members, ends, strict=True):
        shown = trajectories[member]
        row = tuple(batch.student.input_ids[0, start:end].tolist())
        assert row == shown.views["solution"] + shown.rollout.token_ids
    with pytest.raises(AssertionError, match="lacks the view"):
        assemble(trajectories, [2], packing=packing, pad_id=0, context="solution")
