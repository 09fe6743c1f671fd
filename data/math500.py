"""MATH-500: 500 test problems of MATH with worked solutions (openai/prm800k, arXiv 2305.20050; MATH
is arXiv 2103.03874)."""

from __future__ import annotations

from data.boxed import boxed_prompt
from data.cells import text_of
from opd.privileged import Privileged, Problem
from opd.problems import Row


def problem(row: Row) -> Problem:
    r"""The problem as the prompt; the solution, which ends in the \boxed answer, as solution and
    demonstration. Raises ValueError for a row without problem, solution or answer."""
    solution = text_of(row, "solution")
    return Problem(
        boxed_prompt("math500", text_of(row, "problem")),
        Privileged(solution=solution, answer=text_of(row, "answer"), demonstration=solution),
    )
