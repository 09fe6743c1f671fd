"""The letter of a multiple-choice answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from opd.config import part
from opd.privileged import Problem
from opd.reward import Reward
from opd.types import Rollout, Verdict
from rewards.exact import unanswered, wrong
from rewards.number import boxes, last_box, said

MARKUP = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\b|\\[,;!: ]|[*_$`{}]")
JOINED = re.compile(r"\}[\s$*.,;/&|]*(?:\b(?:or|and)\b)?[\s$*]*\\boxed\s*\{", re.IGNORECASE)

# A bare letter is one only where no other word follows it: "A dog" is no choice.
ENDED = r"(?=[).:,;!/&]|\s*(?:$|\n)|\s+(?:or|and|because|since|/|&)(?:\s|$))"
LETTER = rf"(?:\(([A-Za-z])\)|([A-Z]){ENDED}|([a-z])$)"
CHOSEN = re.compile(rf"\s*(?:(?:[Oo]ption|[Cc]hoice)\s+)?{LETTER}")
ANOTHER = re.compile(rf"[).:!\s]*(?:,\s*(?:or\b|and\b)?|/|&|\bor\b|\band\b)\s*{LETTER}")
STATED = re.compile(r"\banswer\s*(?:is\s*:?|:|=)\s*", re.IGNORECASE)


@part
class Choice(Reward):
    r"""1 where the letter that is chosen is the answer, else 0.

    It stands in the last \boxed{...}; without any box after the last "answer is" or "answer:", or
    else alone on the last line, of a response that ended by itself. "C", "(C)", "C." and, except
    for a last line among others, "C. Paris" are choices; "A dog" and "not C" are none. Two letters
    are a hedge, which fails. Thinking, up to "</think>", is not read. The rules are ours.
    """

    letters: Annotated[str, Field(pattern="^[A-Z]{2,26}$")] = "ABCDEFGHIJ"
    """What the options may be called."""

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        right = chosen(problem.privileged.answer or "")
        return [judged(given(rollout), right, rollout) for rollout in rollouts]

    def check(self, problem: Problem) -> None:
        right = chosen(problem.privileged.answer or "")
        if len(right) != 1 or right[0] not in self.letters:
            raise ValueError(
                f"its answer is no letter of {self.letters}; let the adapter fill Privileged.answer"
            )


def judged(given: str | None, right: Sequence[str], rollout: Rollout) -> Verdict:
    if given is None:
        return unanswered(rollout)
    letters = chosen(given)
    if len(set(letters)) > 1:
        return Verdict("fail", 0.0, "You chose more than one answer.")
    if not letters:
        return wrong(given)
    (letter,) = set(letters)
    return Verdict("pass", 1.0, answer=letter) if letters == right else wrong(letter, answer=letter)


def given(rollout: Rollout) -> str | None:
    """What stands where the response says its choice, or None."""
    text = said(rollout.text)
    if "\\boxed" in text:
        return hedged(text) or last_box(text) or None
    if rollout.finish == "length":
        return None
    text = MARKUP.sub("", text).strip()
    *_, stated = [None, *STATED.finditer(text)]
    if stated:
        return saying(text[stated.end() :])
    last = text.rpartition("\n")[2].strip()
    alone = re.sub(r"[\s().,:;!]", "", last)
    return saying(last) if last == text or len(alone) == 1 else None


def hedged(text: str) -> str | None:
    """The last two boxes when nothing but "or" stands between them."""
    last = sorted(boxes(text))[-2:]
    if len(last) < 2 or not JOINED.fullmatch(text, last[0][1], last[1][0]):
        return None
    return " or ".join(text[start:end] for start, end in last)


def saying(text: str) -> str | None:
    """`text` when it begins with a choice."""
    return text.strip() if chosen(text) else None


def chosen(text: str) -> list[str]:
    """The letters that `text` begins with, in capitals: one for a choice, several for a hedge."""
    text = MARKUP.sub("", text).strip()
    letters: list[str] = []
    match = CHOSEN.match(text)
    while match:
        letters.append(next(filter(None, match.groups())).upper())
        match = ANOTHER.match(text, match.end())
    return letters
