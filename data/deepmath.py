"""DeepMath-103K: hard problems with three worked answers each (zwhe99/DeepMath-103K, arXiv
2504.11456)."""

from __future__ import annotations

from typing import Literal

from data.boxed import INSTRUCTION
from data.cells import after_thinking, answer_of, identity, text_of
from opd.config import part
from opd.privileged import Privileged, Problem
from opd.problems import Adapter, Row
from opd.types import Message, Prompt


@part
class DeepMath(Adapter):
    """The question as the prompt; one of the three R1 responses as solution and demonstration.

    Releases before May 2025 hold 48 questions that tell their answer; `opd data check` finds such.
    """

    solution: Literal[1, 2, 3] = 1
    """Which of the three."""
    solution_holds_thinking: bool = False
    """Whether the solution is the whole response; else it is what follows "</think>", and all of a
    response without that mark."""

    def __call__(self, row: Row) -> Problem:
        question, column = text_of(row, "question"), f"r1_solution_{self.solution}"
        response = text_of(row, column)
        return Problem(
            Prompt(
                id=identity("deepmath", question),
                messages=(Message("user", f"{question}\n\n{INSTRUCTION}"),),
            ),
            Privileged(
                solution=response
                if self.solution_holds_thinking
                else after_thinking(response, column),
                answer=answer_of(row, "final_answer"),
                demonstration=response,
            ),
        )
