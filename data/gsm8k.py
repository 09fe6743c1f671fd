"""GSM8K: grade-school word problems with worked answers (openai/gsm8k, arXiv 2110.14168)."""

from __future__ import annotations

import re

from data.boxed import boxed_prompt
from data.cells import text_of
from opd.privileged import Privileged, Problem
from opd.problems import Row

CALCULATION = re.compile(r"<<[^<>]*>>")


def problem(row: Row) -> Problem:
    """The question as the prompt; the worked answer, freed of calculator marks, as the solution and
    the number after "####" as the answer. Raises ValueError for a row that holds neither."""
    question, worked = text_of(row, "question"), text_of(row, "answer")
    steps, mark, final = worked.rpartition("####")
    if not mark or not final.strip():
        raise ValueError("column 'answer' does not end with '#### ' and a number")
    solution = CALCULATION.sub("", steps).strip()
    answer = final.strip().replace(",", "")
    return Problem(
        boxed_prompt("gsm8k", question),
        Privileged(
            solution=solution,
            answer=answer,
            demonstration=f"{solution}\nThe final answer is \\boxed{{{answer}}}.",
        ),
    )
