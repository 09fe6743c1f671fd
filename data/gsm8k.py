"""GSM8K: grade-school word problems with worked answers (openai/gsm8k, arXiv 2110.14168)."""

from __future__ import annotations

import hashlib
import re

from opd.privileged import Privileged, Problem
from opd.problems import Row
from opd.types import Message, Prompt

INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."
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
        Prompt(
            id=f"gsm8k-{hashlib.sha256(question.encode()).hexdigest()[:12]}",
            messages=(Message("user", f"{question}\n\n{INSTRUCTION}"),),
        ),
        Privileged(
            solution=solution,
            answer=answer,
            demonstration=f"{solution}\nThe final answer is \\boxed{{{answer}}}.",
        ),
    )


def text_of(row: Row, column: str) -> str:
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"column {column!r} holds no text")
    return value.strip()
