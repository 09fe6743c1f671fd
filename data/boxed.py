r"""Questions whose answer is asked for in a \boxed{}."""

from __future__ import annotations

from data.cells import identity
from opd.types import Message, Prompt

INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."


def boxed_prompt(dataset: str, question: str) -> Prompt:
    """The question and the instruction, with an id that depends on the question alone."""
    return Prompt(
        id=identity(dataset, question),
        messages=(Message("user", f"{question}\n\n{INSTRUCTION}"),),
    )
