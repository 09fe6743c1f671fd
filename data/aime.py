"""AIME: the American Invitational Mathematics Examination, answers from 000 to 999 (such as
HuggingFaceH4/aime_2024 and math-ai/aime25)."""

from __future__ import annotations

import re

from data.boxed import boxed_prompt
from data.cells import answer_of, text_of
from opd.privileged import Privileged, Problem
from opd.problems import Row

ANSWER = re.compile(r"\d{1,3}")


def problem(row: Row) -> Problem:
    """The problem as the prompt; the answer without its leading zeros; the solution where the row
    has one. Raises ValueError for an answer that is no whole number from 0 to 999."""
    answer = answer_of(row, "answer")
    if not ANSWER.fullmatch(answer):
        raise ValueError(f"column 'answer' holds {answer!r}, no whole number from 000 to 999")
    return Problem(
        boxed_prompt("aime", text_of(row, "problem")),
        Privileged(
            solution=text_of(row, "solution") if row.get("solution") else None,
            answer=str(int(answer)),
        ),
    )
