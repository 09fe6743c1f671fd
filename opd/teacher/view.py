"""What the teacher may see before it scores a response."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from math import ceil, floor
from random import Random
from string import Template
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from opd.config import part
from opd.errors import DataError
from opd.privileged import Group, Problem
from opd.problems import Wanted, texts
from opd.rollout.engine import Sampling
from opd.rollout.sampler import Sampler
from opd.teacher.segments import opening, segments
from opd.types import Message, Prompt

ROUNDING = 1e-9
THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


class View(ABC):
    """A prompt that takes the place of the student's prompt before the same response tokens."""

    choices: ClassVar[Mapping[str, str]] = {"Analysis": "opd.teacher.analysis:Analysis"}

    quotes_rollouts: ClassVar[bool] = False
    """Whether it shows text that a model wrote, which may spell anything."""
    shows_share: ClassVar[bool] = False
    """Whether it shows less of a reference where less is to be revealed."""

    is_written: ClassVar[bool] = False
    """Whether the teacher writes what it shows, anew in every step: then it is prepared first."""

    def open(self, problems: Sequence[Problem]) -> None:  # noqa: B027
        """Take what it shows of other problems, once, before any step."""

    def prepare(
        self,
        groups: Sequence[Group],
        sampler: Sampler,
        sampling: Sampling,
        occasion: str,
        reveal: float,
    ) -> int:
        """Write what a step's groups are shown, with the weights that score it; returns how many
        tokens were drawn."""
        return 0

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
class Instruction(View):
    """The question as a template has it, with nothing privileged but what the template asks for.

    arXiv 2603.05433; the wording is ours.
    """

    template: str = "Solve the problem as briefly as you can, without losing rigour.\n\n$question"

    @field_validator("template")
    @classmethod
    def holds_its_mark(cls, template: str) -> str:
        return checked(template, {"question"})

    def messages(self, group: Group, index: int, reveal: float = 1.0) -> tuple[Message, ...]:
        prompt = group.problem.prompt
        return with_question(prompt, filled(self.template, question=prompt.question))


@part
class Shown(View):
    """A template in which `$question` and one privileged text are filled in.

    Write `$$` for a dollar sign; what is filled in is never read as a template.
    """

    mark: ClassVar[str]
    shows_question: bool = True
    """False for a template of your own without `$question`: what a reference says by itself, or
    what stands in a block of another view."""
    template: str

    @field_validator("template")
    @classmethod
    def holds_its_marks(cls, template: str, known: ValidationInfo) -> str:
        asks = {"question"} if known.data.get("shows_question", True) else set[str]()
        return checked(template, asks | {cls.mark})

    def __post_init__(self) -> None:
        if not self.shows_question and "question" in Template(self.template).get_identifiers():
            raise ValueError("shows_question is false, but the template has $question; write one")

    @abstractmethod
    def text(self, group: Group, index: int, reveal: float) -> str | None:
        """What stands for the mark; None when there is nothing to show."""

    def written(self, group: Group, index: int, reveal: float) -> str | None:
        """The template filled in; None when there is nothing to show."""
        text = self.text(group, index, reveal)
        if text is None:
            return None
        return filled(self.template, question=group.problem.prompt.question, **{self.mark: text})

    def messages(self, group: Group, index: int, reveal: float = 1.0) -> tuple[Message, ...] | None:
        written = self.written(group, index, reveal)
        return None if written is None else with_question(group.problem.prompt, written)


@part
class Solution(Shown):
    """The reference solution. Of a share below 1 the first floor(reveal * m) of its m segments, and
    the answer beside them.

    arXiv 2601.18734, in part 2605.11458; the wording and the segments are ours.
    """

    mark: ClassVar[str] = "solution"
    shows_share: ClassVar[bool] = True
    template: str = (
        "$question\n\nA verified reference solution, for your eyes only:\n$solution\n\n"
        "Study why each step holds, then solve the problem in your own words, step by step."
    )
    partial_template: str = (
        "$question\n\nA verified reference solution, for your eyes only, that may stop early; its "
        "final answer stands below it:\n$solution\n\nFinal answer: $answer\n\n"
        "Study why each step holds, then solve the problem in your own words, step by step."
    )
    """In place of `template` where segments are left out. A view without the question that is given
    none takes `template` with the answer below."""

    def __post_init__(self) -> None:
        super().__post_init__()
        marks = Template(self.partial_template).get_identifiers()
        if not self.shows_question and "question" in marks:
            self.partial_template = f"{self.template}\n\nFinal answer: $answer"

    @field_validator("partial_template")
    @classmethod
    def holds_the_answer(cls, template: str, known: ValidationInfo) -> str:
        asks = {"question"} if known.data.get("shows_question", True) else set[str]()
        return checked(template, asks | {cls.mark, "answer"})

    def text(self, group: Group, index: int, reveal: float) -> str:
        solution = privileged_text(group, "solution")
        # 0.29 * 100 is a little less than 29.
        return opening(solution, floor(reveal * len(segments(solution)) + ROUNDING))

    def written(self, group: Group, index: int, reveal: float) -> str | None:
        shown = self.text(group, index, reveal)
        if shown == privileged_text(group, "solution"):
            return super().written(group, index, reveal)
        question, answer = group.problem.prompt.question, privileged_text(group, "answer")
        return filled(self.partial_template, question=question, solution=shown, answer=answer)


@part
class Partial(Shown):
    """The first ceil(share * m) of the reference's m segments, never the last one, without boxed
    answers; absent where there is but one segment.

    arXiv 2605.20643; the wording is ours.
    """

    mark: ClassVar[str] = "partial"
    template: str = (
        "$question\n\nThe start of a verified reference solution, for your eyes only; the rest is "
        "missing:\n$partial\n\nSolve the whole problem in your own words, step by step."
    )
    share: Annotated[float, Field(gt=0, le=1)] = 0.5

    def text(self, group: Group, index: int, reveal: float) -> str | None:
        pieces = segments(privileged_text(group, "solution"))
        shown = min(ceil(self.share * len(pieces)), len(pieces) - 1)
        return without_boxes("".join(pieces[:shown])) if shown > 0 else None


@part
class OtherProblem(Shown):
    """What belongs to another problem of the dataset, whose answer is another one too: the control
    for what any reference does to a teacher. arXiv 2608.09228, 2609.20612; the wording is ours."""

    mark: ClassVar[str] = "other"
    template: str = (
        "$question\n\nHere is another problem with its solution:\n$other\n\n"
        "Now solve the first problem in your own words, step by step."
    )
    show: Literal["problem", "solution", "answer"] = "problem"
    """Its question and solution, or one text alone."""
    number: Annotated[int, Field(gt=0)] = 1
    """Which of the other problems, in an order that hangs on the problem's id alone."""
    problems: tuple[Problem, ...] = field(init=False, default=(), repr=False, compare=False)

    def open(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)

    def text(self, group: Group, index: int, reveal: float) -> str:
        other = self.other(group.problem)
        alone = Group(other, (), ())
        if self.show != "problem":
            return privileged_text(alone, self.show)
        return f"{other.prompt.question}\n\n{privileged_text(alone, 'solution')}"

    def other(self, problem: Problem) -> Problem:
        """The problem that is shown beside `problem`. Raises DataError when there is none."""
        assert self.problems, "a view of other problems is opened with them first"
        start = Random(problem.prompt.id).randrange(len(self.problems))
        found = 0
        for candidate in (*self.problems[start:], *self.problems[:start]):
            differs = candidate.privileged.answer != problem.privileged.answer
            found += differs and candidate.prompt.id != problem.prompt.id
            if found == self.number:
                return candidate
        raise DataError(
            f"problem {problem.prompt.id}: a view shows other problem number {self.number}, but "
            f"{found} have another answer; take more problems"
        )


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
class Demonstration(Shown):
    """A whole response that an expert wrote, as the student would have to write it. arXiv
    2601.19897; the wording is ours."""

    mark: ClassVar[str] = "demonstration"
    template: str = (
        "$question\n\nAn expert's response, for your eyes only:\n$demonstration\n\n"
        "Learn from it, then answer in your own way."
    )

    def text(self, group: Group, index: int, reveal: float) -> str:
        return privileged_text(group, "demonstration")


@part
class Sibling(Shown):
    """Another rollout of the group that succeeded, or failed, without its reasoning tags.

    Absent when there is none. arXiv 2601.20802, failed ones 2606.11709, the shortest 2609.37915;
    the wording is ours.
    """

    mark: ClassVar[str] = "sibling"
    quotes_rollouts: ClassVar[bool] = True
    template: str = (
        "$question\n\nA correct answer from another try:\n$sibling\n\n"
        "Now answer the original question correctly."
    )
    when: Literal["success", "failure"] = "success"
    """A failure was judged; one that ran out of room is among them."""
    order: Literal["first", "shortest"] = "first"
    """As they were sampled, or by tokens."""
    number: Annotated[int, Field(gt=0)] = 1
    """Which of them; views of several numbers show several siblings."""
    shown_for: Literal["all", "failures"] = "all"
    """Which rollouts it is shown for. Scoring successes is for nothing where they weigh nothing."""

    def text(self, group: Group, index: int, reveal: float) -> str | None:
        if self.shown_for == "failures" and group.verdicts[index].success:
            return None
        others = [
            rollout
            for other, (rollout, verdict) in enumerate(
                zip(group.rollouts, group.verdicts, strict=True)
            )
            if other != index and verdict.status != "no_verdict"
            if verdict.success == (self.when == "success")
        ]
        if self.order == "shortest":
            others.sort(key=lambda rollout: len(rollout.token_ids))
        if len(others) < self.number:
            return None
        return THINKING.sub("", others[self.number - 1].text).strip()


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
class Together(Shown):
    """What each of several blocks has to say about a rollout; absent when none has.

    arXiv 2601.20802; the wording is ours.
    """

    mark: ClassVar[str] = "blocks"
    quotes_rollouts: ClassVar[bool] = True
    blocks: Annotated[tuple[Shown, ...], Field(min_length=1)]
    """Each writes its own template."""
    between: str = "\n\n"
    template: str = "$question\n\n$blocks\n\nNow answer the original question correctly."

    def open(self, problems: Sequence[Problem]) -> None:
        for block in self.blocks:
            block.open(problems)

    def text(self, group: Group, index: int, reveal: float) -> str | None:
        said = [block.written(group, index, reveal) for block in self.blocks]
        return self.between.join(text for text in said if text is not None) or None


@part
class Attempt(View):
    """The response and a word on its verdict, with room for it to be written once more: what the
    model has just written before it writes it again. Absent without a verdict. arXiv 2604.12002.

    The wording is ours; it must be the one that the model has learned to revise by.
    """

    quotes_rollouts: ClassVar[bool] = True
    right: str = "Restating this solution cleanly."
    wrong: str = "This answer is wrong; starting again."
    gap: str = "\n\n"
    """Before and after the word."""

    def messages(self, group: Group, index: int, reveal: float = 1.0) -> tuple[Message, ...] | None:
        verdict = group.verdicts[index]
        if verdict.status == "no_verdict":
            return None
        cue = self.right if verdict.success else self.wrong
        begun = f"{group.rollouts[index].text}{self.gap}{cue}{self.gap}"
        return (*group.problem.prompt.messages, Message("assistant", begun))


@part
class FirstOf(View):
    """The first of several views that has something to say about a rollout."""

    quotes_rollouts: ClassVar[bool] = True
    views: tuple[View, ...]

    def open(self, problems: Sequence[Problem]) -> None:
        for view in self.views:
            view.open(problems)

    def messages(self, group: Group, index: int, reveal: float = 1.0) -> tuple[Message, ...] | None:
        found = (view.messages(group, index, reveal) for view in self.views)
        return next((messages for messages in found if messages is not None), None)


@part
class Matching(View):
    """A view of some problems alone: of those whose row has certain values. Other weights for each
    such view are other teachers for other problems."""

    quotes_rollouts: ClassVar[bool] = True
    view: View
    where: Annotated[dict[str, Wanted], Field(min_length=1)]
    """As in `problems.where`, of columns that `problems.labels` names."""

    def open(self, problems: Sequence[Problem]) -> None:
        """Raises DataError when the problems do not keep the columns, or none of them matches."""
        missing = {column for p in problems for column in self.where if column not in p.labels}
        if missing:
            named = ", ".join(sorted(missing))
            raise DataError(
                f"problems.labels: a view is of the problems with certain values of {named}, which "
                f"problems do not keep; set problems.labels=[{', '.join(self.where)}]"
            )
        if not any(self.matches(problem) for problem in problems):
            raise DataError(f"teacher.views: no problem has {self.where}; correct the view's where")
        self.view.open(problems)

    def matches(self, problem: Problem) -> bool:
        return all(problem.labels[name] in texts(wanted) for name, wanted in self.where.items())

    def messages(self, group: Group, index: int, reveal: float = 1.0) -> tuple[Message, ...] | None:
        return self.view.messages(group, index, reveal) if self.matches(group.problem) else None


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


def checked(template: str, marks: set[str]) -> str:
    """`template`; ValueError unless it holds exactly these marks."""
    if not Template(template).is_valid():
        raise ValueError("a $ here starts no mark; write $$ for a dollar sign")
    if set(Template(template).get_identifiers()) != marks:
        ordered = sorted(marks, key=lambda mark: (mark != "question", mark))
        named = " and ".join(f"${mark}" for mark in ordered)
        raise ValueError(f"this template holds {named}, no more")
    return template


def filled(template: str, **texts: str) -> str:
    """`template` with its marks replaced; `texts` are never read as templates."""
    return Template(template).substitute(texts)


def without_boxes(text: str) -> str:
    """`text` without its `\\boxed{...}`, braces inside them included."""
    return "".join(outside_boxes(text))


def outside_boxes(text: str) -> Iterator[str]:
    """The stretches of `text` between boxes."""
    head, box, rest = text.partition("\\boxed{")
    while box:
        yield head
        depth, end = 1, 0
        while depth and end < len(rest):
            depth += {"{": 1, "}": -1}.get(rest[end], 0)
            end += 1
        head, box, rest = rest[end:].partition("\\boxed{")
    yield head
