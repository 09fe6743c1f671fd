"""Where the tokens of two tokenizers end together in one response.

A response is laid on an axis of UTF-8 bytes, on which its end of turn is one byte more: ours.
Legend: `T` tokens of a response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, Self

import torch
from torch import Tensor

from opd.errors import DataError
from opd.rollout.chat import UNFINISHED, Chat
from opd.types import Rollout, Scores, Spans

Ends = Sequence[int | None]
"""`[T]` where each token ends, in bytes; None inside of a character."""

Group = tuple[range, range]
"""Tokens of the first and of the second tokenizer that spell the same bytes."""


@dataclass(frozen=True)
class Aligned:
    """A student's response in a teacher's tokens."""

    token_ids: tuple[int, ...]
    """`[T]` of the teacher's vocabulary."""
    groups: tuple[Group, ...]
    """Student's and teacher's tokens, in order."""

    @property
    def single(self) -> Self:
        """With the groups alone that are one token on both sides."""
        kept = (group for group in self.groups if len(group[0]) == len(group[1]) == 1)
        return replace(self, groups=tuple(kept))


def align(student: Chat, teacher: Chat, rollout: Rollout) -> Aligned | None:
    """The response of `rollout` in the tokens of `teacher`; None where that cannot spell it, byte
    by byte, as the student did."""
    content, stop = rollout.token_ids, ()
    if rollout.finish == "stop":
        content, stop = rollout.token_ids[:-1], (teacher.end_of_turn,)
    if student.decoded(content) != rollout.text:
        return None
    try:
        written = teacher.response_ids(rollout.text)[:-1]
    except DataError:
        return None  # a student may spell the teacher's control tokens: no reason to end a run
    mine, theirs = byte_ends(student, content), byte_ends(teacher, written)
    if not content or not written or mine[-1] is None or mine[-1] != theirs[-1]:
        return None
    if stop:
        end = mine[-1] + 1
        mine, theirs = [*mine, end], [*theirs, end]
    return Aligned((*written, *stop), tuple(grouped(mine, theirs)))


def byte_ends(chat: Chat, ids: Sequence[int]) -> list[int | None]:
    """`[T]` where each of `ids` ends."""
    pieces = chat.pieces(ids)
    sizes = (0 if piece == UNFINISHED else len(piece.encode()) for piece in pieces)
    return [
        None if piece == UNFINISHED else end
        for piece, end in zip(pieces, accumulate(sizes), strict=True)
    ]


def grouped(first: Ends, second: Ends) -> list[Group]:
    """The smallest groups that both tokenisations can be cut into; what is left over at the end is
    one more, where both have some."""
    groups: list[Group] = []
    starts, at = (0, 0), (0, 0)
    while at[0] < len(first) and at[1] < len(second):
        end, other = first[at[0]], second[at[1]]
        if end is None or (other is not None and end < other):
            at = at[0] + 1, at[1]
        elif other is None or end > other:
            at = at[0], at[1] + 1
        else:
            at = at[0] + 1, at[1] + 1
            groups.append((range(starts[0], at[0]), range(starts[1], at[1])))
            starts = at
    rest = range(starts[0], len(first)), range(starts[1], len(second))
    if rest[0] and rest[1]:
        groups.append(rest)
    return groups


def shared_entries(student: Chat, teacher: Chat) -> list[tuple[int, int]]:
    """(student's id, teacher's id) of vocabulary entries that are the same text, by student's id;
    the tokens that end a turn are one entry, whatever they are called."""
    theirs = dict(teacher.tokenizer.get_vocab())
    pairs = {
        token_id: theirs[token]
        for token, token_id in student.tokenizer.get_vocab().items()
        if token in theirs
    }
    taken = teacher.end_of_turn
    pairs = {mine: other for mine, other in pairs.items() if other != taken}
    return sorted({**pairs, student.end_of_turn: taken}.items())


def with_spans(scores: Scores, shared: Tensor, row: Literal["last", "first"] = "last") -> Scores:
    """Scores of no token yet, to be laid out in spans; `shared` is `[M, 2]`."""
    spans = Spans(
        length=torch.zeros_like(scores.target_ids),
        others=torch.zeros(scores.target_ids.shape, device=scores.target_ids.device),
        shared=shared,
        row=row,
    )
    return replace(scores, target_ids=scores.target_ids.clone(), spans=spans)


def lay_spans(scores: Scores, start: int, hidden: Tensor, aligned: Aligned) -> None:
    """Put a teacher's hidden states `[T, D]` of its own tokens at the student's tokens, the first
    of which is token `start`, that its spans end with."""
    assert scores.spans is not None, "scores of a teacher with the student's tokens"
    ids = torch.tensor(aligned.token_ids, device=hidden.device)
    logprob, _ = scores.head.score(hidden, ids, scores.temperature)
    # Sums over all tokens before each, from which those of a span follow.
    before = torch.nn.functional.pad(logprob.double().cumsum(0), (1, 0))
    ends, lengths, firsts, lasts = (
        torch.tensor(numbers, device=hidden.device)
        for numbers in zip(
            *((start + mine[-1], len(mine), own[0], own[-1]) for mine, own in aligned.groups),
            strict=True,
        )
    )
    kept = lasts if scores.spans.row == "last" else firsts
    skipped = before[kept + 1] - before[kept]
    scores.hidden[ends] = hidden[kept]
    scores.present[ends] = True
    scores.target_ids[ends] = ids[kept]
    scores.spans.length[ends] = lengths
    scores.spans.others[ends] = (before[lasts + 1] - before[firsts] - skipped).float()
