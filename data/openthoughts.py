"""OpenThoughts: problems with R1's reasoning (open-thoughts/OpenThoughts-114k, arXiv
2506.04178)."""

from __future__ import annotations

import re
from typing import Literal

from data.boxed import INSTRUCTION
from data.cells import identity, messages_of, text_of
from opd.config import part
from opd.privileged import Privileged, Problem
from opd.problems import Adapter, LeftOut, Row
from opd.types import Message, Prompt
from rewards.number import last_box

WithoutAnswer = Literal["refuse", "leave_out"]

TAGGED = re.compile(
    r"\s*<\|begin_of_thought\|>(.*)<\|end_of_thought\|>\s*"
    r"<\|begin_of_solution\|>(.*)<\|end_of_solution\|>\s*",
    re.DOTALL,
)


@part
class OpenThoughts(Adapter):
    """Rows of the subset `metadata`; `where: {domain: math}` takes those of mathematics.

    The answer is read from the ground truth, whatever R1 found.
    """

    solution: Literal["deepseek_solution", "deepseek_reasoning", "ground_truth_solution"] = (
        "deepseek_solution"
    )
    """Which column is the privileged solution."""
    without_answer: WithoutAnswer = "refuse"
    """What becomes of rows whose solution has no box."""

    def __call__(self, row: Row) -> Problem:
        question = text_of(row, "problem")
        reasoning, final = text_of(row, "deepseek_reasoning"), text_of(row, "deepseek_solution")
        worked, truth = text_of(row, self.solution), text_of(row, "ground_truth_solution")
        return Problem(
            Prompt(
                id=identity("openthoughts", question),
                messages=(Message("user", f"{question}\n\n{INSTRUCTION}"),),
            ),
            Privileged(
                solution=worked,
                answer=boxed(truth, "ground_truth_solution", self.without_answer),
                demonstration=thought(reasoning, final),
            ),
        )


@part
class Conversations(Adapter):
    """Rows of the subset `default`: the user's turn, which already asks for a box, is the prompt,
    the assistant's is privileged. The column `system` is not read: it demands tags of its own.

    The answer is R1's, for the subset has no other.
    """

    without_answer: WithoutAnswer = "refuse"
    """What becomes of rows whose solution has no box."""

    def __call__(self, row: Row) -> Problem:
        turns = messages_of(row["conversations"], "conversations", keys=("from", "value"))
        if [turn.role for turn in turns] != ["user", "assistant"]:
            raise ValueError("column 'conversations' holds not one question and its answer")
        tagged = TAGGED.fullmatch(turns[1].content)
        if tagged is None:
            raise ValueError("column 'conversations', turn 2 is no thought and solution in tags")
        reasoning, final = (text.strip() for text in tagged.groups())
        return Problem(
            Prompt(id=identity("openthoughts", turns[0].content), messages=turns[:1]),
            Privileged(
                solution=final,
                answer=boxed(final, "conversations", self.without_answer),
                demonstration=thought(reasoning, final),
            ),
        )


def boxed(worked: str, column: str, without_answer: WithoutAnswer) -> str:
    r"""What the last \boxed{...} of a worked solution holds. Proofs have none, and problems of code
    and puzzles."""
    answer = last_box(worked)
    if answer:
        return answer
    if without_answer == "leave_out":
        raise LeftOut(f"column {column!r} has no box")
    raise ValueError(
        f"column {column!r} has no \\boxed{{...}} with an answer (without_answer: leave_out leaves "
        "such rows)"
    )


def thought(reasoning: str, final: str) -> str:
    """A response as a model that thinks writes it."""
    return f"<think>\n{reasoning}\n</think>\n\n{final}"
