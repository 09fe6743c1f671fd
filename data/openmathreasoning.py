"""OpenMathReasoning: forum problems with long worked answers (nvidia/OpenMathReasoning, arXiv
2504.16891)."""

from __future__ import annotations

from typing import Literal

from data.boxed import INSTRUCTION
from data.cells import after_thinking, answer_of, identity, text_of
from opd.config import part
from opd.privileged import Privileged, Problem
from opd.problems import Adapter, LeftOut, Row
from opd.types import Message, Prompt

NOT_THERE = (None, "", "n/a")
"""How a row says that it has no answer."""


@part
class OpenMathReasoning(Adapter):
    """The problem as the prompt; a generated response as solution and demonstration.

    A problem stands in many rows, each with another response: set `repeated` to take_agreed. A row
    of the split `genselect` is refused: its problem holds the candidates to select from.
    """

    without_answer: Literal["refuse", "leave_out"] = "refuse"
    """What becomes of rows that have no expected answer."""
    solution_holds_thinking: bool = False
    """Whether the solution is the whole response; else it is what follows "</think>"."""

    def __call__(self, row: Row) -> Problem:
        if row.get("inference_mode") == "genselect":
            raise ValueError(
                "column 'inference_mode' is genselect, so that column 'problem' holds solutions to "
                "select from; take the split cot or tir"
            )
        question, response = text_of(row, "problem"), text_of(row, "generated_solution")
        return Problem(
            Prompt(
                id=identity("openmathreasoning", question),
                messages=(Message("user", f"{question}\n\n{INSTRUCTION}"),),
            ),
            Privileged(
                solution=response
                if self.solution_holds_thinking
                else after_thinking(response, "generated_solution"),
                answer=self.answer(row),
                demonstration=response,
            ),
        )

    def answer(self, row: Row) -> str:
        if row["expected_answer"] not in NOT_THERE:
            return answer_of(row, "expected_answer")
        if self.without_answer == "leave_out":
            raise LeftOut("column 'expected_answer' is empty")
        raise ValueError(
            "column 'expected_answer' is empty (without_answer: leave_out leaves such rows)"
        )
