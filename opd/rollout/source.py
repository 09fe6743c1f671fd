"""Where the responses to learn on come from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from random import Random
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from opd.config import part
from opd.errors import DataError
from opd.objective.schedule import Between, Constant, Schedule
from opd.privileged import Group, Problem
from opd.rollout.chat import Chat
from opd.rollout.engine import Sampling
from opd.rollout.judged import Judged, read_judged
from opd.rollout.sampler import Sampler, seed_of
from opd.teacher.view import View
from opd.types import Prompt, Rollout


class Source(ABC):
    """Rollouts for a step's problems."""

    choices: ClassVar[Mapping[str, str]] = {
        "HandOff": "opd.rollout.taught:HandOff",
        "MostTaught": "opd.rollout.taught:MostTaught",
    }

    @property
    def tells_logprobs(self) -> bool:
        """Whether responses come with the log-probs of the policy that drew them."""
        return True

    @property
    def most_per_problem(self) -> float:
        """Rollouts of one problem, infinite where nobody knows before they are read."""
        return math.inf

    def authors(self) -> frozenset[str]:
        """Hashes of the weights that have drawn what is stored."""
        return frozenset()

    def answered(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        """Those of a run's problems that there are responses to. Raises DataError for none."""
        return tuple(problems)

    @abstractmethod
    def collect(
        self, problems: Sequence[Problem], sampler: Sampler, sampling: Sampling, step: int
    ) -> list[list[Rollout]]:
        """The rollouts of each problem, in order. Raises DataError when a problem lacks what the
        source reads, or leaves no room in the context."""


@part
class OnPolicy(Source):
    """The student's own samples; it is given the prompt and nothing else."""

    rollouts_per_problem: Annotated[int, Field(gt=0)] = 1

    @property
    def most_per_problem(self) -> float:
        return self.rollouts_per_problem

    def collect(
        self, problems: Sequence[Problem], sampler: Sampler, sampling: Sampling, step: int
    ) -> list[list[Rollout]]:
        prompts = [problem.prompt for problem in problems]
        return sampler.draw(prompts, sampling, self.rollouts_per_problem, f"train/{step}")


@part
class Demonstrations(Source):
    """Written responses instead of samples."""

    read: Literal["demonstration", "solution"] = "demonstration"
    """The privileged field that holds the response."""

    @property
    def tells_logprobs(self) -> bool:
        return False

    @property
    def most_per_problem(self) -> float:
        return 1

    def collect(
        self, problems: Sequence[Problem], sampler: Sampler, sampling: Sampling, step: int
    ) -> list[list[Rollout]]:
        return [[self.written(problem, sampler)] for problem in problems]

    def written(self, problem: Problem, sampler: Sampler) -> Rollout:
        """The demonstration of `problem` as a rollout of no policy."""
        text: str | None = getattr(problem.privileged, self.read)
        if text is None:
            raise DataError(
                f"problem {problem.prompt.id}: it has no {self.read} to learn from; set "
                "source.read to a field that the adapter fills"
            )
        return written(problem, text, sampler)


Learned = Literal["as_drawn", "plain", "stream", "text"]
"""What is learned of a stored response. `as_drawn`: its tokens behind the prompt that they were
drawn behind; `plain`: its tokens behind the problem's own prompt; `stream`: behind the problem's
own prompt also all that the other prompt went on with; `text`: its text in this model's tokens,
for one that another tokenizer wrote."""


@part
class Stored(Source):
    """What `opd sample` has written: the same responses at every visit of a problem."""

    path: str
    only: Literal["all", "success", "failure"] = "all"
    """By the verdicts on file."""
    repeats: Literal["keep", "drop"] = "keep"
    """What becomes of a response whose tokens stand behind the same prompt before."""
    rollouts_per_problem: Annotated[int, Field(gt=0)] | None = None
    """The first so many; null for all."""
    learned: Learned = "as_drawn"
    kept: dict[str, list[Judged]] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )

    @property
    def tells_logprobs(self) -> bool:
        return self.learned == "as_drawn"

    @property
    def most_per_problem(self) -> float:
        return self.rollouts_per_problem or math.inf

    def authors(self) -> frozenset[str]:
        drawn_by = (row.drawn_by for rows in self.rows().values() for row in rows)
        return frozenset(author for author in drawn_by if author is not None)

    def answered(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        rows = self.rows()
        found = tuple(problem for problem in problems if problem.prompt.id in rows)
        if not found:
            raise DataError(
                f"source.path: {self.path} answers none of the problems as `only` asks; give the "
                "dataset that it was sampled from, or other responses"
            )
        return found

    def collect(
        self, problems: Sequence[Problem], sampler: Sampler, sampling: Sampling, step: int
    ) -> list[list[Rollout]]:
        return [
            [self.relearned(row, problem, sampler) for row in self.rows()[problem.prompt.id]]
            for problem in problems
        ]

    def rows(self) -> dict[str, list[Judged]]:
        """What is learned from, by the problem's id; read once."""
        if not self.kept:
            for name, rows in read_judged(Path(self.path)).items():
                chosen = [row for row in rows if self.only in ("all", outcome(row))]
                if self.repeats == "drop":
                    chosen = without_repeats(chosen)
                if chosen:
                    self.kept[name] = chosen[: self.rollouts_per_problem]
        return self.kept

    def relearned(self, row: Judged, problem: Problem, sampler: Sampler) -> Rollout:
        """The rollout as `learned` asks; raises DataError where it does not fit the student."""
        rollout, place = row.rollout, f"source.path: {self.path}, problem {problem.prompt.id}"
        if rollout.prompt != problem.prompt:
            raise DataError(f"{place}: it answers another question; use the dataset of that run")
        if self.learned != "text" and row.chat != sampler.chat.fingerprint:
            raise DataError(
                f"{place}: its tokens are of another tokenizer or chat template than "
                f"{sampler.chat.name}'s; set source.learned=text to encode its text anew"
            )
        return relearned(replace(rollout, policy_step=-1), problem, self.learned, sampler, place)

    def group(self, problem: Problem) -> Group:
        """The stored responses to a problem with their verdicts."""
        rows = self.rows()[problem.prompt.id]
        rollouts, verdicts = (row.rollout for row in rows), (row.verdict for row in rows)
        return Group(problem, tuple(rollouts), tuple(verdicts))


@part
class InView(Source):
    """Responses behind what a view shows, of the problem alone or of each of its stored responses:
    the student's own samples, or stored ones. arXiv 2601.19897, where the side that sees more may
    write, and 2604.12002, where one revises what it reads."""

    view: View
    of: Stored | None = None
    """Responses that the view reads; null for a view that reads none."""
    answers: Stored | None = None
    """What is put behind each view; null draws it."""
    rollouts_per_view: Annotated[int, Field(gt=0)] = 1
    """Drawn ones."""
    learned: Learned = "plain"

    def __post_init__(self) -> None:
        if self.learned == "text" and self.answers is None:
            raise ValueError("what is drawn here is in this model's tokens; set learned to plain")

    @property
    def tells_logprobs(self) -> bool:
        return self.learned == "as_drawn" and self.answers is None

    def authors(self) -> frozenset[str]:
        return frozenset() if self.answers is None else self.answers.authors()

    def answered(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        self.view.open(problems)
        for stored in (self.of, self.answers):
            problems = problems if stored is None else stored.answered(problems)
        return tuple(problems)

    def collect(
        self, problems: Sequence[Problem], sampler: Sampler, sampling: Sampling, step: int
    ) -> list[list[Rollout]]:
        shown = [self.shown(problem, sampler.chat) for problem in problems]
        if self.answers is None:
            asked = [prompt for prompts in shown for prompt in prompts]
            found = sampler.draw(asked, sampling, self.rollouts_per_view, f"train/{step}")
        else:
            stored = self.answers.collect(problems, sampler, sampling, step)
            found = [
                [moved(answer, prompt, sampler) for answer in answers]
                for prompts, answers in zip(shown, stored, strict=True)
                for prompt in prompts
            ]
        behind = iter(found)
        return [
            [
                relearned(rollout, problem, self.learned, sampler, f"problem {problem.prompt.id}")
                for _ in prompts
                for rollout in next(behind)
            ]
            for problem, prompts in zip(problems, shown, strict=True)
        ]

    def shown(self, problem: Problem, chat: Chat) -> list[Prompt]:
        """What the view makes of the problem; raises DataError when that is nothing."""
        group = Group(problem, (), ()) if self.of is None else self.of.group(problem)
        prompts = []
        for index in range(max(1, len(group.rollouts))):
            messages = self.view.messages(group, index)
            if messages is None or (
                self.view.quotes_rollouts and any(chat.control_token(m.content) for m in messages)
            ):
                continue
            # An id of its own gives each a seed of its own.
            prompts.append(Prompt(f"{problem.prompt.id}#{index}", messages))
        if not prompts:
            raise DataError(
                f"problem {problem.prompt.id}: source.view has nothing to show of it; choose "
                "another view or leave the problem out"
            )
        return prompts


def moved(rollout: Rollout, prompt: Prompt, sampler: Sampler) -> Rollout:
    """The response behind another prompt, which nobody has drawn it behind."""
    unknown = (math.nan,) * len(rollout.token_ids)
    ids = sampler.render(prompt, len(rollout.token_ids))
    return replace(rollout, prompt_ids=ids, logprobs=unknown)


def relearned(
    rollout: Rollout, problem: Problem, learned: Learned, sampler: Sampler, place: str
) -> Rollout:
    """A rollout that may have been drawn behind another prompt, as an answer to the problem's own.
    Raises DataError, with the place, when it does not fit."""
    if learned == "text":
        return written(problem, rollout.text, sampler)
    mine = replace(rollout, prompt=problem.prompt)
    length = len(mine.prompt_ids) + len(mine.token_ids)
    if learned == "as_drawn" and length > sampler.max_length:
        raise DataError(
            f"{place}: its prompt and response of {length} tokens exceed the context of "
            f"{sampler.max_length}; raise max_length or drop the response"
        )
    plain = sampler.chat.prompt_ids(problem.prompt.messages)
    if learned == "as_drawn" or rollout.prompt_ids == plain:
        return mine
    begun = () if learned == "plain" else rollout.prompt_ids[len(plain) :]
    if begun and rollout.prompt_ids[: len(plain)] != plain:
        raise DataError(
            f"{place}: what it was drawn behind does not go on from the problem's own prompt; "
            "set source.learned=plain"
        )
    token_ids = begun + rollout.token_ids
    plain = sampler.render(problem.prompt, len(token_ids))
    unknown = (math.nan,) * len(token_ids)
    return replace(mine, prompt_ids=plain, token_ids=token_ids, logprobs=unknown)


@part
class Both(Source):
    """The responses of one source and then those of another, side by side in one group."""

    first: Source
    second: Source

    @property
    def tells_logprobs(self) -> bool:
        return self.first.tells_logprobs and self.second.tells_logprobs

    @property
    def most_per_problem(self) -> float:
        return self.first.most_per_problem + self.second.most_per_problem

    def authors(self) -> frozenset[str]:
        return self.first.authors() | self.second.authors()

    def answered(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        return self.second.answered(self.first.answered(problems))

    def collect(
        self, problems: Sequence[Problem], sampler: Sampler, sampling: Sampling, step: int
    ) -> list[list[Rollout]]:
        sides = (s.collect(problems, sampler, sampling, step) for s in (self.first, self.second))
        return [[*first, *second] for first, second in zip(*sides, strict=True)]


def outcome(row: Judged) -> str:
    return "success" if row.verdict.success else "failure"


def without_repeats(rows: Sequence[Judged]) -> list[Judged]:
    """The first of those whose tokens agree."""
    first: dict[object, Judged] = {}
    for row in rows:
        first.setdefault((row.rollout.prompt_ids, row.rollout.token_ids), row)
    return list(first.values())


def written(problem: Problem, text: str, sampler: Sampler) -> Rollout:
    """`text` as a rollout of no policy."""
    token_ids = sampler.chat.response_ids(text)
    return Rollout(
        prompt=problem.prompt,
        prompt_ids=sampler.render(problem.prompt, len(token_ids)),
        token_ids=token_ids,
        logprobs=(math.nan,) * len(token_ids),
        policy_step=-1,
        finish="stop",
        text=text,
    )


@part
class Mixed(Source):
    """One of two sources for each whole step, drawn by the step's number. arXiv 2306.13649; one
    after the other, as arXiv 2603.11178 has it, where the share is 1 and then 0 or the reverse."""

    first: Source
    second: Source
    share: Annotated[Schedule, Between(0, 1)] = field(default_factory=lambda: Constant(value=0.5))
    """Probability of `first`."""

    @property
    def tells_logprobs(self) -> bool:
        return self.first.tells_logprobs and self.second.tells_logprobs

    @property
    def most_per_problem(self) -> float:
        return max(self.first.most_per_problem, self.second.most_per_problem)

    def authors(self) -> frozenset[str]:
        return self.first.authors() | self.second.authors()

    def answered(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        return self.second.answered(self.first.answered(problems))

    def collect(
        self, problems: Sequence[Problem], sampler: Sampler, sampling: Sampling, step: int
    ) -> list[list[Rollout]]:
        draw = Random(seed_of(sampler.seed, "mixed", step)).random()
        chosen = self.first if draw < self.share.now else self.second
        return chosen.collect(problems, sampler, sampling, step)
