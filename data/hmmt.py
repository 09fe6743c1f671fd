"""HMMT: the Harvard-MIT Mathematics Tournament with short answers (MathArena/hmmt_feb_2025, arXiv
2505.23281)."""

from __future__ import annotations

from data.boxed import boxed_prompt
from data.cells import answer_of, text_of
from opd.privileged import Privileged, Problem
from opd.problems import Row


def problem(row: Row) -> Problem:
    """The problem as the prompt and its answer, a formula or a number. Raises ValueError for a row
    without either."""
    return Problem(
        boxed_prompt("hmmt", text_of(row, "problem")),
        Privileged(answer=answer_of(row, "answer")),
    )
