"""Chunks: the same asks whenever a process was killed, and each sample once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from opd.evaluation.collect import Task, collect
from opd.evaluation.evaluator import Benchmark
from opd.evaluation.transcript import Transcript
from opd.rollout.engine import Sampling
from opd.rollout.sampler import Ask, Drawn, Unasked
from opd.types import Message, Prompt, Rollout, Verdict

PROMPTS = tuple(Prompt(f"p{n}", (Message("user", f"{n}?"),)) for n in range(5))


class Echo:
    """Says the question again, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, int]]] = []

    def each(self, asks: Sequence[Ask], sampling: Sampling, occasion: str) -> list[Drawn | Unasked]:
        self.asked.append([(ask.prompt.id, ask.index) for ask in asks])
        return [self.said(ask) for ask in asks]

    def said(self, ask: Ask) -> Drawn | Unasked:
        if ask.prompt.id == "p3":
            return Unasked(ask.prompt, "does_not_fit", "it is long", 7)
        text = f"{ask.prompt.question} {ask.index}"
        return Drawn(Rollout(ask.prompt, (), (), (), 0, "stop", text), 7, len(text))


def judge(rollouts: Sequence[Rollout]) -> list[Verdict]:
    return [Verdict("pass", 1.0, answer=rollout.prompt.id) for rollout in rollouts]


TASK = Task(Benchmark("b", PROMPTS, judge), Sampling(max_response_tokens=4), 2, greedy=True)


def collected(path: Path, chunk: int = 4) -> Echo:
    echo = Echo()
    done = sum(collect(TASK, echo, Transcript(path), chunk))
    assert done == len(TASK.wanted()) == 15
    return echo


def test_everything_is_asked_once(tmp_path: Path) -> None:
    echo = collected(tmp_path / "rows")
    assert [len(asked) for asked in echo.asked] == [4, 4, 2, 4, 1]
    assert echo.asked[1] == [("p4", 0), ("p0", 1), ("p1", 1), ("p2", 1)]
    found = Transcript(tmp_path / "rows").samples
    assert list(found) == TASK.wanted()
    assert {key for key, sample in found.items() if not sample.was_asked} == {
        ("b", kind, "p3", index) for kind, index in (("sampled", 0), ("sampled", 1), ("greedy", 0))
    }
    # Verdicts stay with their own responses across those that were not asked.
    assert all(s.answer == s.problem for s in found.values() if s.was_asked)


@pytest.mark.parametrize("kept", range(16))
def test_a_half_written_chunk_is_asked_whole_and_half_kept(tmp_path: Path, kept: int) -> None:
    whole = tmp_path / "whole"
    uncut = collected(whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    path = tmp_path / "rows"
    path.write_bytes(b"".join(lines[:kept]))
    again = collected(path)
    assert path.read_bytes() == whole.read_bytes()
    assert again.asked == uncut.asked[len(uncut.asked) - len(again.asked) :]
