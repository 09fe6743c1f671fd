"""A view that shows what its own weights wrote when they read the reference first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Annotated, ClassVar

from pydantic import Field

from opd.config import part
from opd.privileged import Group, Problem
from opd.rollout.engine import Sampling
from opd.rollout.sampler import Ask, Drawn, Sampler
from opd.teacher.view import THINKING, Shown, Solution, View
from opd.types import Prompt


def reading() -> Solution:
    return Solution(
        template="$question\n\nA verified reference solution, for your eyes only:\n$solution\n\n"
        "Explain in your own words why each of its steps holds."
    )


@part
class Analysis(Shown):
    """What the teacher makes of the reference, written once a problem in every step; absent where
    its prompt leaves no room. It takes the reference's place, or stands beside it in `Together`.

    arXiv 2601.18734, an option of the authors' code; the wording is ours.
    """

    mark: ClassVar[str] = "analysis"
    quotes_rollouts: ClassVar[bool] = True
    is_written: ClassVar[bool] = True
    template: str = (
        "$question\n\nYour own notes on a verified solution:\n$analysis\n\n"
        "Now solve the problem in your own words, step by step."
    )
    reads: View = field(default_factory=reading)
    """What the teacher is shown when it writes."""
    max_response_tokens: Annotated[int, Field(gt=0)] = 1024
    notes: dict[str, str] = field(init=False, default_factory=dict, repr=False, compare=False)
    """Problem to what was written of it in this step."""

    def open(self, problems: Sequence[Problem]) -> None:
        self.reads.open(problems)

    def prepare(
        self,
        groups: Sequence[Group],
        sampler: Sampler,
        sampling: Sampling,
        occasion: str,
        reveal: float,
    ) -> int:
        shown = {group.problem.prompt.id: self.reads.messages(group, 0, reveal) for group in groups}
        asks = [
            Ask(Prompt(name, messages), 0)
            for name, messages in shown.items()
            if messages is not None
        ]
        longest = replace(sampling, max_response_tokens=self.max_response_tokens)
        drawn = [
            found for found in sampler.each(asks, longest, occasion) if isinstance(found, Drawn)
        ]
        self.notes = {each.rollout.prompt.id: each.rollout.text for each in drawn}
        return sum(each.tokens for each in drawn)

    def text(self, group: Group, index: int, reveal: float) -> str | None:
        written = self.notes.get(group.problem.prompt.id)
        return None if written is None else THINKING.sub("", written).strip() or None
