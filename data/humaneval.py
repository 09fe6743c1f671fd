"""HumanEval and HumanEval+: functions to complete (openai/openai_humaneval, arXiv 2107.03374;
evalplus/humanevalplus, arXiv 2305.01210)."""

from __future__ import annotations

import ast

from data.cells import text_of
from data.programs import ORDER, fenced, parsed, source_of, with_solution
from opd.privileged import Problem, ProgramTests
from opd.problems import Row
from opd.types import Message, Prompt


def problem(row: Row) -> Problem:
    """The function to complete as the prompt, all tests hidden; what stands around the function,
    imports and helpers, is given to every program and is the tests' own. Raises ValueError for a
    row whose prompt does not define its entry point."""
    prompt, entry = source_of(row, "prompt"), text_of(row, "entry_point")
    tests = ProgramTests(
        assertions=(f"check({entry})",),
        setup=source_of(row, "test"),
        preamble=around(prompt, entry),
    )
    return Problem(
        Prompt(
            id=text_of(row, "task_id"),
            messages=(Message("user", f"Complete this function.\n\n{fenced(prompt)}\n\n{ORDER}"),),
        ),
        with_solution(prompt + source_of(row, "canonical_solution"), tests),
    )


def around(prompt: str, entry: str) -> str:
    """The lines of a prompt outside the function that is asked for."""
    for node in parsed(prompt, "prompt").body:
        if isinstance(node, ast.FunctionDef) and node.name == entry:
            lines = prompt.split("\n")
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            return "\n".join([*lines[: first - 1], *lines[node.end_lineno :]])
    raise ValueError(f"column 'prompt' does not define {entry!r}, which 'entry_point' names")
