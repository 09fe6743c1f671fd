"""What the teacher may see before it scores a response."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from math import floor
from string import Template
from typing import ClassVar

from pydantic import field_validator

from opd.config import part
from opd.errors import DataError
from opd.privileged import Group
from opd.teacher.segments import opening, segments
from opd.types import Message, Prompt

THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


class View(ABC):
    """A prompt that takes the place of the student's prompt before the same response tokens."""

    quotes_rollouts: ClassVar[bool] = False
    """Whether it shows text that the student wrote, which may spell anything."""

    @abstractmethod
    def messages(self, group: Group, index: int, reveal: float = 1.0) -> tuple[Message, ...] | None:
        """What the teacher reads before `group.rollouts[index]`; None when nothing is privileged
        about it. `reveal` in [0, 1] is the share of a reference that is shown; views that show
        none leave it alone. Raises DataError when the problem lacks a field that the view shows."""


@part
class Plain(View):
    """Nothing but the question: for teachers that differ by their weights."""

    def messages(self, group: Group, index: int, reveal: float = 1.0) -> tuple[Message, ...]:
        return group.problem.prompt.messages


@part
class Shown(View):
    """A template in which `$question` and one privileged text are filled in.

    Write `$$` for a dollar sign; what is filled in is never read as a template.
    """

    mark: ClassVar[str]
    template: str

    @field_validator("template")
    @classmethod
    def holds_its_marks(cls, template: str) -> str:
        if not Template(template).is_valid():
            raise ValueError("a $ here starts no mark; write $$ for a dollar sign")
        marks = set(Template(template).get_identifiers())
        if marks != {"question", cls.mark}:
            raise ValueError(
                f"a template of {cls.__name__} holds $question and ${cls.mark}, no more"
            )
        return template

    @abstractmethod
    def text(self, group: Group, index: int, reveal: float) -> str | None:
        """What stands for the mark; None when there is nothing to show."""

    def messages(self, group: Group, index: int, reveal: float = 1.0) -> tuple[Message, ...] | None:
        text = self.text(group, index, reveal)
        if text is None:
            return None
        prompt = group.problem.prompt
        filled = Template(self.template).substitute({"question": prompt.question, self.mark: text})
        return with_question(prompt, filled)


@part
class Solution(Shown):
    """The reference solution, or its first floor(reveal * m) of m segments.

    arXiv 2601.18734; the wording and the segments are ours.
    """

    mark: ClassVar[str] = "solution"
    template: str = (
        "$question\n\nA verified reference solution, for your eyes only:\n$solution\n\n"
        "Study why each step holds, then solve the problem in your own words, step by step."
    )

    def text(self, group: Group, index: int, reveal: float) -> str:
        solution = privileged_text(group, "solution")
        return opening(solution, floor(reveal * len(segments(solution))))


@part
class Answer(Shown):
    """The short answer without its derivation. Ours."""

    mark: ClassVar[str] = "answer"
    template: str = (
        "$question\n\nThe correct final answer is $answer.\n\n"
        "Derive it in your own words, step by step."
    )

    def text(self, group: Group, index: int, reveal: float) -> str:
        return privileged_text(group, "answer")


@part
class Sibling(Shown):
    """The first other rollout of the group that succeeded, without its reasoning tags.

    Absent when no other rollout succeeded. arXiv 2601.20802; the wording is ours.
    """

    mark: ClassVar[str] = "sibling"
    quotes_rollouts: ClassVar[bool] = True
    template: str = (
        "$question\n\nA correct answer from another try:\n$sibling\n\n"
        "Now answer the original question correctly."
    )

    def text(self, group: Group, index: int, reveal: float) -> str | None:
        successes = (
            rollout.text
            for other, rollout in enumerate(group.rollouts)
            if other != index and group.verdicts[other].success
        )
        first = next(successes, None)
        return None if first is None else THINKING.sub("", first).strip()


@part
class Feedback(Shown):
    """What the grader said of a failed attempt; absent when it said nothing or it succeeded.

    arXiv 2601.20802; the wording is ours.
    """

    mark: ClassVar[str] = "feedback"
    quotes_rollouts: ClassVar[bool] = True
    template: str = (
        "$question\n\nWhat went wrong last time:\n$feedback\n\n"
        "Now answer the original question correctly."
    )

    def text(self, group: Group, index: int, reveal: float) -> str | None:
        verdict = group.verdicts[index]
        return None if verdict.success else verdict.feedback or None


@part
class FirstOf(View):
    """The first of several views that has something to say about a rollout."""

    quotes_rollouts: ClassVar[bool] = True
    views: tuple[View, ...]

    def messages(self, group: Group, index: int, reveal: float = 1.0) -> tuple[Message, ...] | None:
        found = (view.messages(group, index, reveal) for view in self.views)
        return next((messages for messages in found if messages is not None), None)


def with_question(prompt: Prompt, question: str) -> tuple[Message, ...]:
    """The messages of `prompt` with its last user turn replaced."""
    last = max(i for i, message in enumerate(prompt.messages) if message.role == "user")
    replaced = list(prompt.messages)
    replaced[last] = Message("user", question)
    return tuple(replaced)


def privileged_text(group: Group, field: str) -> str:
    """A privileged field of the group's problem; DataError when the problem lacks it."""
    value: str | None = getattr(group.problem.privileged, field)
    if value is None:
        raise DataError(
            f"problem {group.problem.prompt.id}: a view shows its {field}, but it has none; choose "
            "another view or an adapter that fills it"
        )
    return value
