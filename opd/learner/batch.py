"""Trajectories to micro-batches under a token budget.

Prompts and padding never reach a loss: a batch is indexed by action tokens, and each context knows
the positions that predict them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opd.privileged import Trajectory
from opd.types import Batch, Context

Ids = tuple[int, ...]


def pack(
    trajectories: Sequence[Trajectory], *, tokens_per_batch: int, packing: bool, pad_id: int
) -> list[Batch]:
    """Micro-batches whose widest context holds at most `tokens_per_batch` positions.

    Similar lengths go together. A trajectory that alone exceeds the budget gets its own batch:
    nothing is cut. `packing` lays sequences end to end in one row instead of padding rows.
    """
    ordered = sorted(trajectories, key=longest)
    bins: list[list[Trajectory]] = []
    for trajectory in ordered:
        if bins and positions([*bins[-1], trajectory], packing) <= tokens_per_batch:
            bins[-1].append(trajectory)
        else:
            bins.append([trajectory])
    return [assemble(members, packing=packing, pad_id=pad_id) for members in bins]


def longest(trajectory: Trajectory) -> int:
    """Positions of the longest context of a trajectory."""
    prompts = [trajectory.rollout.prompt_ids, *trajectory.views.values()]
    return max(map(len, prompts)) + len(trajectory.rollout.token_ids)


def positions(members: Sequence[Trajectory], packing: bool) -> int:
    """Positions of the widest context of a micro-batch, padding included."""
    lengths = [longest(member) for member in members]
    return sum(lengths) if packing else max(lengths) * len(lengths)


def assemble(members: Sequence[Trajectory], *, packing: bool, pad_id: int) -> Batch:
    """One Batch of all `members`, in their order."""
    responses = [member.rollout.token_ids for member in members]
    lengths = torch.tensor([len(response) for response in responses])
    names = sorted({name for member in members for name in member.views})

    def context(prompts: Sequence[Ids | None]) -> Context:
        return build_context(prompts, responses, packing=packing, pad_id=pad_id)

    return Batch(
        student=context([member.rollout.prompt_ids for member in members]),
        views={name: context([member.views.get(name) for member in members]) for name in names},
        target_ids=torch.tensor([token for response in responses for token in response]),
        sequence=torch.repeat_interleave(torch.arange(len(members)), lengths),
        position=torch.cat([torch.arange(int(length)) for length in lengths]),
        sampled_logprob=torch.cat([sampled_logprobs(member) for member in members]),
        reward=torch.tensor([member.verdict.reward for member in members]),
        advantage=torch.tensor([member.advantage for member in members]),
        pass_rate=torch.tensor([member.pass_rate for member in members]),
        success=torch.tensor([member.verdict.success for member in members]),
    )


def sampled_logprobs(trajectory: Trajectory) -> Tensor:
    """`[T]` nats; NaN for a response that was written down instead of sampled."""
    rollout = trajectory.rollout
    if rollout.policy_step < 0:
        return torch.full((len(rollout.token_ids),), float("nan"))
    return torch.tensor(rollout.logprobs, dtype=torch.float32)


def build_context(
    prompts: Sequence[Ids | None], responses: Sequence[Ids], *, packing: bool, pad_id: int
) -> Context:
    """The context of `responses` behind `prompts`; a prompt of None leaves its response out."""
    rows = [
        prompt + response
        for prompt, response in zip(prompts, responses, strict=True)
        if prompt is not None
    ]
    width = max(map(len, rows), default=0)
    predict_at: list[Tensor] = []
    present: list[Tensor] = []
    start, row = 0, 0
    for prompt, response in zip(prompts, responses, strict=True):
        present.append(torch.full((len(response),), prompt is not None))
        if prompt is None:
            predict_at.append(torch.zeros(len(response), dtype=torch.long))
            continue
        # The position before a token predicts it.
        first = (start if packing else row * width) + len(prompt) - 1
        predict_at.append(torch.arange(first, first + len(response)))
        start += len(prompt) + len(response)
        row += 1
    layout = packed_rows(rows) if packing else padded_rows(rows, width, pad_id)
    input_ids, position_ids, boundaries = layout
    return Context(input_ids, position_ids, boundaries, torch.cat(predict_at), torch.cat(present))


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
    return Batch(
        student=context_to(batch.student, device),
        views={name: context_to(context, device) for name, context in batch.views.items()},
        **{
            name: getattr(batch, name).to(device)
            for name in Batch.__dataclass_fields__
            if name not in ("student", "views")
        },
    )


def context_to(context: Context, device: torch.device) -> Context:
    """The context with every tensor on `device`."""
    return Context(
        input_ids=context.input_ids.to(device),
        position_ids=context.position_ids.to(device),
        boundaries=None if context.boundaries is None else context.boundaries.to(device),
        predict_at=context.predict_at.to(device),
        present=context.present.to(device),
    )
