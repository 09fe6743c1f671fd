"""MBPP, whole and sanitized, and MBPP+: short functions with a few assertions
(google-research-datasets/mbpp, arXiv 2108.07732; evalplus/mbppplus, arXiv 2305.01210)."""

from __future__ import annotations

from collections.abc import Sequence

from data.cells import text_of
from data.programs import ORDER, names_that_tests_need, parsed, source_of, with_solution
from opd.privileged import Problem, ProgramTests
from opd.problems import Row
from opd.types import Message, Prompt


def problem(row: Row) -> Problem:
    """The text and the first assertion, which names the function, as the prompt; that assertion,
    the others and MBPP+'s further tests judge. Raises ValueError for a row without tests."""
    question = text_of(row, "prompt" if "prompt" in row else "text")
    source = source_of(row, "code")
    assertions = sources_of(row, "test_list")
    if not assertions:
        raise ValueError("column 'test_list' is empty")
    imports = sources_of(row, "test_imports") if "test_imports" in row else []
    setup = source_of(row, "test_setup_code") if row.get("test_setup_code") else ""
    further = [source_of(row, "test")] if row.get("test") else []
    needed = names_that_tests_need(
        parsed(source, "code"), [setup, *assertions, *further], "test_list"
    )
    tests = ProgramTests(
        assertions=(*assertions, *further),
        setup="\n".join([*imports, needed, setup]),
        shown=1,
    )
    asked = f"{question}\n\nThe program must pass this test:\n{assertions[0]}\n\n{ORDER}"
    return Problem(
        Prompt(id=f"mbpp-{row['task_id']}", messages=(Message("user", asked),)),
        with_solution(source, tests),
    )


def sources_of(row: Row, column: str) -> list[str]:
    value = row[column]
    if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"column {column!r} holds no list of sources")
    return [str(item).replace("\r\n", "\n") for item in value]
