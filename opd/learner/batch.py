"""Trajectories to micro-batches under a token budget.

Prompts and padding never reach a loss: a batch is indexed by action tokens, and its context knows
the positions that predict them. What teachers read has no say in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from opd.privileged import Trajectory
from opd.types import Batch, Context

Ids = tuple[int, ...]

LARGEST_PADDING = 0.25
"""Share of a padded model input. Shorter inputs cost less than padding does: lengths double from
one to the next."""


def pack(
    trajectories: Sequence[Trajectory],
    *,
    tokens_per_batch: int,
    packing: bool,
    pad_id: int,
    context: str = "student",
) -> list[Batch]:
    """Micro-batches of at most `tokens_per_batch` positions of the student, padding included.

    Similar lengths go together, so that little is padding. A trajectory that alone exceeds the
    budget gets its own batch: nothing is cut. `packing` lays sequences end to end in one row
    instead of padding rows. Trajectories that lack the view `context` are left out.
    """
    prompts = {n: prompt_ids(t, context) for n, t in enumerate(trajectories)}
    chosen = [(n, len(ids)) for n, ids in prompts.items() if ids is not None]
    lengths = [before + len(trajectories[n].rollout.token_ids) for n, before in chosen]
    return [
        assemble(
            trajectories,
            [chosen[place][0] for place in places],
            packing=packing,
            pad_id=pad_id,
            context=context,
        )
        for places in fill(lengths, tokens_per_batch, packing=packing)
    ]


def prompt_ids(trajectory: Trajectory, context: str) -> Ids | None:
    """`[P]` ids of what stands before the response; None where the view is absent."""
    own = context == "student"
    return trajectory.rollout.prompt_ids if own else trajectory.views.get(context)


def earlier_logprobs(trajectory: Trajectory, context: str) -> Sequence[float]:
    """`[T]` nats behind a context before the step's first update; NaN where they are absent."""
    absent = [float("nan")] * len(trajectory.rollout.token_ids)
    return trajectory.earlier_logprobs.get(context, absent)


def fill(
    lengths: Sequence[int], tokens_per_batch: int, *, packing: bool, before: int = 0
) -> list[list[int]]:
    """Indices of `lengths`, shortest first, in bins that each make one model input of at most
    `tokens_per_batch` positions and little padding, with `before` positions ahead of each sequence.

    What alone exceeds the budget gets its own bin.
    """

    def fits(chosen: Sequence[int]) -> bool:
        inside = positions([lengths[index] for index in chosen], packing)
        real = sum(lengths[index] for index in chosen)
        room = inside + before * len(chosen) <= tokens_per_batch
        return room and real >= (1 - LARGEST_PADDING) * inside

    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if bins and fits([*bins[-1], index]):
            bins[-1].append(index)
        else:
            bins.append([index])
    return bins


def positions(lengths: Sequence[int], packing: bool) -> int:
    """Positions of one model input of sequences of these lengths, padding included."""
    return sum(lengths) if packing else max(lengths) * len(lengths)


def assemble(
    trajectories: Sequence[Trajectory],
    members: Sequence[int],
    *,
    packing: bool,
    pad_id: int,
    context: str = "student",
) -> Batch:
    """One Batch of the trajectories at the places `members`, in that order."""
    chosen = [trajectories[member] for member in members]
    found = [prompt_ids(member, context) for member in chosen]
    prompts = [ids for ids in found if ids is not None]
    assert len(prompts) == len(found), f"a response lacks the view {context} that it stands behind"
    responses = [member.rollout.token_ids for member in chosen]
    lengths = torch.tensor([len(response) for response in responses])
    first: dict[str, int] = {}
    for place, trajectory in enumerate(trajectories):
        first.setdefault(trajectory.rollout.prompt.id, place)
    return Batch(
        student=build_context(prompts, responses, packing=packing, pad_id=pad_id),
        context=context,
        members=tuple(members),
        group=torch.tensor([first[member.rollout.prompt.id] for member in chosen]),
        target_ids=torch.tensor([token for response in responses for token in response]),
        sequence=torch.repeat_interleave(torch.arange(len(chosen)), lengths),
        position=torch.cat([torch.arange(int(length)) for length in lengths]),
        sampled_logprob=torch.tensor(
            [nats for member in chosen for nats in member.rollout.logprobs]
        ),
        earlier_logprob=torch.tensor(
            [nats for member in chosen for nats in earlier_logprobs(member, context)]
        ),
        reward=torch.tensor([member.verdict.reward for member in chosen]),
        advantage=torch.tensor([member.advantage for member in chosen]),
        pass_rate=torch.tensor([member.pass_rate for member in chosen]),
        influence=torch.zeros(len(chosen)),
        success=torch.tensor([member.verdict.success for member in chosen]),
    )


def build_context(
    prompts: Sequence[Ids], responses: Sequence[Ids], *, packing: bool, pad_id: int
) -> Context:
    """The context of `responses` behind `prompts`."""
    rows = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    predict_at: list[Tensor] = []
    start = 0
    for prompt, response in zip(prompts, responses, strict=True):
        # The position before a token predicts it.
        first = start + len(prompt) - 1
        predict_at.append(torch.arange(first, first + len(response)))
        start += len(prompt) + len(response) if packing else width
    layout = packed_rows(rows) if packing else padded_rows(rows, width, pad_id)
    input_ids, position_ids, boundaries = layout
    return Context(input_ids, position_ids, boundaries, torch.cat(predict_at))


def packed_rows(rows: Sequence[Ids]) -> tuple[Tensor, Tensor, Tensor]:
    """`[1, L]` ids, `[1, L]` positions restarting in every segment, `[segments + 1]` boundaries."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    boundaries = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    ids = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    restarts = torch.repeat_interleave(boundaries[:-1], lengths)
    return ids[None], (torch.arange(ids.numel()) - restarts)[None], boundaries


def padded_rows(rows: Sequence[Ids], width: int, pad_id: int) -> tuple[Tensor, Tensor, None]:
    """`[R, L]` ids padded on the right, `[R, L]` positions, no boundaries."""
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids, torch.arange(width).expand(len(rows), width), None


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with every tensor on `device`."""
    if device.type == "cpu":
        return batch
    tensors = {n: v.to(device) for n, v in vars(batch).items() if isinstance(v, Tensor)}
    return replace(batch, student=context_to(batch.student, device), **tensors)


def context_to(context: Context, device: torch.device) -> Context:
    """The context with every tensor on `device`."""
    return Context(
        input_ids=context.input_ids.to(device),
        position_ids=context.position_ids.to(device),
        boundaries=None if context.boundaries is None else context.boundaries.to(device),
        predict_at=context.predict_at.to(device),
    )
