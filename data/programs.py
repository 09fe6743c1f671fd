"""What the adapters of programming problems share: source text, kept as it stands."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Sequence

from opd.privileged import Privileged, ProgramTests
from opd.problems import Row

ORDER = (
    "Answer with the complete program, imports included, in one fenced code block that starts with "
    "```python."
)


def source_of(row: Row, column: str) -> str:
    """The source of a column with its indentation. Raises KeyError when the column is missing,
    ValueError when it holds no text."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"column {column!r} holds no source")
    return value.replace("\r\n", "\n")


def parsed(source: str, column: str) -> ast.Module:
    """Raises ValueError for what is no Python."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"column {column!r} is no Python ({error})") from None


def fenced(source: str) -> str:
    return f"```python\n{source.strip(chr(10))}\n```"


def with_solution(source: str, tests: ProgramTests) -> Privileged:
    """A reference program as solution and demonstration, and the tests that it passes."""
    return Privileged(solution=fenced(source), demonstration=fenced(source), tests=tests)


def names_that_tests_need(source: ast.Module, tests: Sequence[str], column: str) -> str:
    """Statements that stand before tests so that they find the names that they use.

    What the reference program imports becomes the tests' own: taken from the program under test,
    `isclose` would be what that program says. What it defines under a builtin's name is asked of
    the program, which the tests' box calls `program` and does not let shadow a builtin by itself.
    """
    trees = [parsed(test, column) for test in tests]
    used = {n.id for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Name)}
    lines: list[str] = []
    for node in source.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [n for n in node.names if (n.asname or n.name.split(".")[0]) in used]
            if node.names:
                lines.append(ast.unparse(node))
        if isinstance(node, ast.FunctionDef) and node.name in used and hasattr(builtins, node.name):
            lines.append(f"{node.name} = program.{node.name}")
    return "\n".join(lines)
