"""Whether a response keeps a demanded form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import regex
from pydantic import field_validator

from opd.config import part
from opd.privileged import Problem
from opd.reward import Reward
from opd.types import Rollout, Verdict
from rewards.number import said

SECONDS = 1.0
"""Of processor time that matching one response may take: a pattern may be slow on what a model
writes."""


class Form(ABC):
    """One thing that a response's form must be."""

    @abstractmethod
    def fault(self, text: str) -> str | None:
        """What is wrong with the form, as a sentence to the writer; None when nothing is."""


@part
class Matches(Form):
    """The whole response matches a regular expression, in which a dot is any character."""

    pattern: str

    @field_validator("pattern")
    @classmethod
    def is_an_expression(cls, pattern: str) -> str:
        try:
            regex.compile(pattern, regex.DOTALL)
        except regex.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return pattern

    def fault(self, text: str) -> str | None:
        """Raises TimeoutError when matching takes longer than SECONDS."""
        found = regex.fullmatch(self.pattern, text, regex.DOTALL, timeout=SECONDS)
        return None if found else "Your response has not the form that is asked for."


@part
class Thinks(Form):
    """Thinking between one pair of tags, and after it an answer."""

    opening: str = "<think>"
    closing: str = "</think>"
    prompt_opens: bool = False
    """Whether the prompt ends with the opening tag already, so that no response holds one."""

    def fault(self, text: str) -> str | None:
        opened, closed = text.count(self.opening), text.count(self.closing)
        expected = 0 if self.prompt_opens else 1
        if (opened, closed) != (expected, 1):
            return f"Your thinking does not stand between one {self.opening} and {self.closing}."
        if not self.prompt_opens and not text.lstrip().startswith(self.opening):
            return f"Your response does not begin with {self.opening}."
        answer = text.rpartition(self.closing)[2]
        return None if answer.strip() else f"Nothing follows {self.closing}."


@part
class OneBox(Form):
    r"""One \boxed{...} after the thinking, no more and no less."""

    def fault(self, text: str) -> str | None:
        count = said(text).count("\\boxed")
        return None if count == 1 else f"Your answer has {count} boxes where it should have one."


@part
class Format(Reward):
    """What another reward gives, for responses that keep every form; those that break one fail.

    Without another reward, 1 for keeping them all. A response that was cut keeps no form that it
    did not finish. Deterministic but for the time that a slow pattern may take.
    """

    forms: tuple[Form, ...]
    reward: Reward | None = None

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        faults = [self.fault(rollout.text) for rollout in rollouts]
        kept = [rollout for rollout, fault in zip(rollouts, faults, strict=True) if fault is None]
        verdicts = iter(self.judged(problem, kept))
        return [
            next(verdicts) if fault is None else Verdict("fail", 0.0, fault) for fault in faults
        ]

    def fault(self, text: str) -> str | None:
        return next((fault for form in self.forms if (fault := form.fault(text))), None)

    def judged(self, problem: Problem, rollouts: list[Rollout]) -> list[Verdict]:
        if self.reward is None:
            return [Verdict("pass", 1.0) for _ in rollouts]
        return self.reward(problem, rollouts) if rollouts else []

    def check(self, problem: Problem) -> None:
        if not self.forms:
            raise ValueError("Format has no forms to demand; name one")
        if self.reward is not None:
            self.reward.check(problem)

    @property
    def concurrency(self) -> int:
        return 1 if self.reward is None else self.reward.concurrency

    def provenance(self) -> Mapping[str, str]:
        return {} if self.reward is None else self.reward.provenance()
