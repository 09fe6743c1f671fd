"""The embedded default: rows of the generated files become problems."""

from collections.abc import Mapping

from opd.privileged import Privileged, Problem
from opd.types import Message, Prompt

MARKER = "#"
"""What stands before the answer in a response."""


def problem(row: Mapping[str, str | int]) -> Problem:
    """The question is the prompt; reference, answer and an expert response are privileged."""
    solution, answer = str(row["solution"]), str(row["answer"])
    return Problem(
        prompt=Prompt(id=str(row["id"]), messages=(Message("user", str(row["question"])),)),
        privileged=Privileged(
            solution=solution, answer=answer, demonstration=f"{solution};{MARKER}{answer}"
        ),
    )


def is_right(response: str, answer: str) -> bool:
    """Whether the text after the last marker is the answer."""
    _, marker, given = response.rpartition(MARKER)
    return bool(marker) and given.strip() == answer
