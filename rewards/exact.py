"""The answer after a marker, compared letter by letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from opd.config import part
from opd.privileged import Problem
from opd.reward import Reward
from opd.types import Rollout, Verdict

QUOTED_CHARACTERS = 80


@part
class Exact(Reward):
    """1 where the text after the last marker is the answer, else 0."""

    marker: Annotated[str, Field(min_length=1)] = "#"
    tells: Literal["fault", "solution"] = "fault"
    """What the feedback on a response that is not right says: what is wrong, or the reference."""

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        right = (problem.privileged.answer or "").strip()
        verdicts = [compared(self.given(rollout), right, rollout) for rollout in rollouts]
        if self.tells == "fault":
            return verdicts
        told = problem.privileged.solution
        return [v if v.success else replace(v, feedback=told) for v in verdicts]

    def given(self, rollout: Rollout) -> str | None:
        """What the response says after the last marker, or None."""
        return (
            rollout.text.rpartition(self.marker)[2].strip() if self.marker in rollout.text else None
        )

    def check(self, problem: Problem) -> None:
        if not (problem.privileged.answer or "").strip():
            raise ValueError("it has no answer; let the adapter fill Privileged.answer")
        if self.tells == "solution" and not problem.privileged.solution:
            raise ValueError("it has no solution to tell; let the adapter fill Privileged.solution")


def compared(given: str | None, right: str, rollout: Rollout) -> Verdict:
    if not given:
        return unanswered(rollout)
    return Verdict("pass", 1.0, answer=given) if given == right else wrong(given, answer=given)


def wrong(given: str, fault: str = "is wrong", answer: str | None = None) -> Verdict:
    """What was `given`, quoted with its fault; `answer` is what a majority counts it as."""
    cut = given[:QUOTED_CHARACTERS] + ("..." if len(given) > QUOTED_CHARACTERS else "")
    return Verdict("fail", 0.0, f"Your answer {cut!r} {fault}.", answer)


def unanswered(rollout: Rollout) -> Verdict:
    was_cut = rollout.finish == "length"
    cause = "You ran out of room before you gave a" if was_cut else "You gave no"
    return Verdict("no_answer", 0.0, f"{cause} final answer.")
