"""The final answer in \boxed{...}, compared with the right one by math-verify under a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from importlib.metadata import version
from typing import Annotated, cast

from pydantic import Field

from opd.config import part
from opd.privileged import Problem
from opd.reward import Reward
from opd.types import Rollout, Verdict
from rewards.exact import wrong
from rewards.math import policy, pool
from rewards.math.policy import LONGEST, SEVERAL_VALUES, WORK_UNDONE, Answer
from rewards.number import said

DEADLINE = 5.0
"""Seconds that a comparison may take."""
DIGITS = 12
REMEMBERED = 1 << 14


@part
class Boxed(Reward):
    r"""1 where what the last \boxed{...} holds is the answer, else 0.

    Thinking, up to "</think>", is not read. A response whose comparison misses the deadline gets no
    verdict; what would obviously miss it is refused before, as work left undone.
    """

    deadline: Annotated[float, Field(gt=0)] = DEADLINE
    """Seconds that a comparison may take."""
    takes_unboxed: bool = False
    """Whether a response without any box may answer after "####" or "answer is", or by its last
    number: for evaluation of models that were told nothing of boxes. A report must say so."""

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        right = problem.privileged.answer or ""
        return [
            grade(
                rollout.text,
                right,
                deadline=self.deadline,
                takes_unboxed=self.takes_unboxed,
                was_cut=rollout.finish == "length",
            )
            for rollout in rollouts
        ]

    def check(self, problem: Problem) -> None:
        gold_answer(problem.privileged.answer or "")

    @property
    def concurrency(self) -> int:
        return pool.SIZE

    def provenance(self) -> dict[str, str]:
        return {"math-verify": version("math-verify")}


def grade(
    response: str,
    gold: str,
    *,
    deadline: float = DEADLINE,
    takes_unboxed: bool = False,
    was_cut: bool = False,
) -> Verdict:
    """Whether a response ends in the answer `gold`. Ours, after measurements of math-verify 0.9.0.

    `fail` where the answer is wrong or given in a way that the policy refuses; `no_answer` where
    there is none; `no_verdict` where no worker decides within `deadline` seconds. Raises ValueError
    for a `gold` that is no answer itself.
    """
    right = gold_answer(gold)
    text = said(response)
    given = policy.boxed(text)
    if takes_unboxed and "\\boxed" not in text:
        given = (policy.unboxed(text, was_cut) or "",)
    if not any(given):
        cause = "You ran out of room before you gave a" if was_cut else "You gave no"
        return Verdict("no_answer", 0.0, f"{cause} final answer in \\boxed{{}}.")
    if sum(map(len, given)) > LONGEST:
        return wrong(", ".join(given), f"is longer than {LONGEST} characters")
    try:
        found = compared(right, given, deadline)
    except pool.WorkerFaultError:
        return Verdict("no_verdict", 0.0)
    if found.is_equal:
        return Verdict("pass", 1.0, answer=found.canonical)
    return wrong(", ".join(given), found.fault, found.canonical)


@dataclass(frozen=True)
class Comparison:
    """What is known of a given answer."""

    is_equal: bool
    canonical: str
    fault: str = "is wrong"


@lru_cache(REMEMBERED)
def gold_answer(text: str) -> Answer:
    """The right answer, read. Raises ValueError for one that no response could be compared with."""
    if len(text) > LONGEST:
        raise ValueError(f"its answer is longer than {LONGEST} characters; shorten it")
    gold = policy.read(text)
    if not gold.compact:
        raise ValueError("it has no answer; let the adapter fill Privileged.answer")
    if gold.choice or gold.is_words or gold.value is not None:
        return gold
    try:
        reply = asked((), without_percent(gold.text), DEADLINE)
    except pool.WorkerFaultError as error:
        raise ValueError(f"its answer {text!r} cannot be read ({error})") from None
    if reply.get("error") == "unreadable":
        raise ValueError(f"its answer {text!r} is no mathematics that can be read; correct it")
    return gold


@lru_cache(REMEMBERED)
def compared(gold: Answer, boxes: tuple[str, ...], deadline: float) -> Comparison:
    """The values of a list may have a box each; of one value, all must be right. Raises
    WorkerFaultError, which is not remembered."""
    if len(boxes) == 1 or gold.is_several:
        return compared_one(gold, policy.read(", ".join(boxes)), deadline)
    values = [policy.read(box) for box in boxes]
    found = Comparison(False, "")
    for value in values:
        found = compared_one(gold, value, deadline / len(values))
        if not found.is_equal:
            return Comparison(False, ", ".join(v.compact for v in values), SEVERAL_VALUES)
    return found


def compared_one(gold: Answer, given: Answer, deadline: float) -> Comparison:
    if gold.choice or gold.is_words:
        return by_letters(gold, given)
    given = policy.in_shape_of(gold, given)
    fault = policy.refusal(gold, given)
    if fault:
        return Comparison(False, given.compact, fault)
    if given.relations or given.is_named_unlike(gold):
        return by_algebra(gold.whole, given.whole, given, deadline)
    if gold.value is not None and given.value is not None:
        return Comparison(numbers_agree(gold.value, given), str(given.value))
    return by_algebra(gold.text, given.text, given, deadline)


def by_letters(gold: Answer, given: Answer) -> Comparison:
    """Words and options: letters, not symbols, whose order would not matter."""
    if gold.choice:
        return Comparison(given.choice == gold.choice, given.choice or given.words)
    return Comparison(given.words == gold.words, given.words)


def numbers_agree(right: Fraction, given: Answer) -> bool:
    """Equal, or a decimal that agrees in 12 places after the point and in 12 digits."""
    value = cast("Fraction", given.value)
    tolerance = min(abs(right), 1) / 10**DIGITS if "." in given.text else 0
    return abs(value - right) <= tolerance


def by_algebra(right: str, text: str, given: Answer, deadline: float) -> Comparison:
    """What a worker says of two formulas."""
    is_same = right.replace(" ", "") == text.replace(" ", "")
    golds = () if is_same else tuple(percentages(right, text))
    try:
        reply = asked(golds, without_percent(text), deadline)
    except pool.WorkerFaultError:
        if not is_same:
            raise
        reply = {}
    is_equal = is_same or reply.get("equal") is True
    fault = WORK_UNDONE if reply.get("error") == "large" else "is wrong"
    return Comparison(is_equal, canonical(given, reply), fault)


def canonical(given: Answer, reply: pool.Reply) -> str:
    if given.value is not None:
        return str(given.value)
    told = reply.get("canonical")
    if not isinstance(told, str) or len(told) > LONGEST:
        return given.compact
    return f"{told}{'%' if given.is_percentage else ''}"


def percentages(right: str, text: str) -> list[str]:
    """What `text` without its % may be: "10%" is answered by 10%, 10 or 0.1, but 50 not by 50%."""
    plain = without_percent(right)
    if right.endswith("%") and not text.endswith("%"):
        return [plain, rf"\frac{{{plain}}}{{100}}"]
    if text.endswith("%") and not right.endswith("%"):
        return [rf"100 \cdot ({plain})"]
    return [plain]


def without_percent(text: str) -> str:
    return text.removesuffix("%")


@lru_cache(REMEMBERED)
def asked(golds: tuple[str, ...], given: str, deadline: float) -> pool.Reply:
    """A worker's reply. Raises WorkerFaultError, which is not remembered."""
    return pool.ask({"golds": list(golds), "given": given}, deadline)
