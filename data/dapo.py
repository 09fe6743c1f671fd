"""DAPO-Math-17k, and other rows as verl reads them (BytedTsinghua-SIA/DAPO-Math-17k, arXiv
2503.14476)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from data.boxed import INSTRUCTION
from data.cells import answer_of, identity, messages_of
from opd.config import part
from opd.privileged import Privileged, Problem
from opd.problems import Adapter, Row
from opd.types import Prompt

BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


@part
class DAPO(Adapter):
    """The prompt's messages, and `reward_model.ground_truth` as the answer; no solution.

    The published file holds every problem about a hundred times: set `repeated` to take_agreed.
    """

    instruction: Literal["boxed", "as_written"] = "boxed"
    r"""DAPO writes an instruction around every problem: the answer stands on a last line after
    "Answer:". `boxed` replaces it by ours, \boxed{...}, and refuses a prompt without it;
    `as_written` leaves every prompt as it is, other verl rows' too, for a reward that reads what
    that prompt asks for."""

    def __call__(self, row: Row) -> Problem:
        messages = messages_of(row["prompt"], "prompt")
        if messages[-1].role != "user":
            raise ValueError("column 'prompt' ends with an answer")
        if self.instruction == "boxed":
            asked = replace(messages[-1], content=boxed(messages[-1].content))
            messages = (*messages[:-1], asked)
        truth = row["reward_model"]
        if not isinstance(truth, Mapping) or "ground_truth" not in truth:
            raise ValueError("column 'reward_model' holds no 'ground_truth'")
        return Problem(
            Prompt(id=identity("dapo", messages), messages=messages),
            Privileged(answer=answer_of(truth, "ground_truth")),
        )


def boxed(asked: str) -> str:
    """The same problem under our instruction."""
    before, after = BEFORE.strip(), AFTER.strip()
    if not (asked.startswith(before) and asked.endswith(after)):
        raise ValueError(
            "column 'prompt' has not DAPO's instruction around it (instruction: as_written takes "
            "any prompt as it is)"
        )
    problem = asked.removeprefix(before).removesuffix(after).strip()
    if not problem:
        raise ValueError("column 'prompt' holds an instruction and no problem")
    return f"{problem}\n\n{INSTRUCTION}"
