"""The number that a response ends with, compared exactly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from opd.config import part
from opd.privileged import Problem
from opd.reward import Reward
from opd.types import Rollout, Verdict
from rewards.exact import unanswered, wrong

# No exponents and few digits, so that comparing stays cheap whatever a response says.
UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})+|\d{1,40})(?:\.\d{1,40})?|\.\d{1,40})(?:/[1-9]\d{0,39})?"
IN_PROSE = re.compile(rf"(?:(?<![\w)])[-+]\$?)?{UNSIGNED}")
UNIT = r"[a-zA-Z]{2,}\.?(?:\s+[a-zA-Z]+\.?)*"
WITH_UNIT = re.compile(rf"([-+]?)\s*({UNSIGNED})(?:\s*{UNIT})?")

FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
DECORATION = re.compile(r"\\(?:text|mathrm|mbox)\b|\\[,;!: ]|\\?[$%]|[{}]")
BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")


@part
class Number(Reward):
    r"""1 where the final number equals the answer, else 0.

    The final number stands in the last \boxed{...}; without any box, after the last "####";
    without that too, it is the last number of a response that ended by itself. Thinking, up to
    "</think>", is not read.
    """

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        right = number(problem.privileged.answer or "")
        return [judged(final_answer(rollout), right, rollout) for rollout in rollouts]

    def check(self, problem: Problem) -> None:
        if number(problem.privileged.answer or "") is None:
            raise ValueError("its answer is no number; let the adapter fill Privileged.answer")


def judged(given: str | None, right: Fraction | None, rollout: Rollout) -> Verdict:
    if not given:
        return unanswered(rollout)
    value = number(given)
    if value is None:
        return wrong(given, answer=given)
    same = str(value)
    return Verdict("pass", 1.0, answer=same) if value == right else wrong(given, answer=same)


def final_answer(rollout: Rollout) -> str | None:
    """What the response gives as its answer, or None."""
    text = said(rollout.text)
    return last_box(text) if "\\boxed" in text else stated(text, rollout.finish == "length")


def said(text: str) -> str:
    """A response without its thinking."""
    return text.rpartition("</think>")[2]


def stated(text: str, was_cut: bool) -> str | None:
    """The answer of a text without a box: what stands after the last "####", else the last number,
    unless the text was cut before its end."""
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0]
    return None if was_cut else next(reversed(IN_PROSE.findall(text)), None)


def last_box(text: str) -> str | None:
    r"""What stands in the \boxed{...} that opens last among those that are closed."""
    found = boxes(text)
    return text[slice(*max(found))].strip() if found else None


def boxes(text: str) -> list[tuple[int, int]]:
    r"""Where the content of every closed \boxed{...} starts and ends, in the order of the ends."""
    found: list[tuple[int, int]] = []
    opened: list[int | None] = []
    for brace in BRACES.finditer(text):
        if brace[0] == "}":
            box = opened.pop() if opened else None
            if box is not None:
                found.append((box, brace.start()))
        elif brace[0] not in ("\\{", "\\}"):
            opened.append(None if brace[0] == "{" else brace.end())
    return found


def number(text: str) -> Fraction | None:
    """The value of a text that is one number: "$1,080.50", "18 dollars", "50%", "1/2", or None."""
    plain = FRACTION.sub(r" \1/\2", text.replace("\N{MINUS SIGN}", "-"))
    match = WITH_UNIT.fullmatch(DECORATION.sub("", plain).strip().rstrip("."))
    if match is None:
        return None
    top, _, bottom = match[2].replace(",", "").partition("/")
    return Fraction(f"{match[1]}{top}") / int(bottom or 1)
