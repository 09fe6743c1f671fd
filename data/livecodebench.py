"""LiveCodeBench: contest problems by date (livecodebench/code_generation_lite,
arXiv 2403.07974)."""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from collections.abc import Mapping
from datetime import date
from itertools import islice
from typing import cast

from pydantic import model_validator

from data.cells import text_of
from data.programs import ORDER, fenced
from opd.config import part
from opd.privileged import Case, Privileged, Problem, ProgramTests
from opd.problems import Adapter, LeftOut, Row
from opd.types import Message, Prompt

TESTS_BYTES = 256 << 20
"""Of one problem's private tests, once decompressed."""
OF_A_TEXT = {
    *("PROTO", "FRAME", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"),
}
"""All the operations that a pickled text needs; none of them makes or calls anything."""
OPERATIONS = 8
"""More than a pickled text has."""

PREAMBLE = """\
import bisect, collections, functools, heapq, itertools, math, operator, random, re, string, sys
from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict, defaultdict, deque
from functools import cache, cmp_to_key, lru_cache, reduce
from heapq import heapify, heappop, heappush, heappushpop, heapreplace, nlargest, nsmallest
from itertools import accumulate, chain, combinations, groupby, permutations, product
from math import ceil, comb, factorial, floor, gcd, inf, isqrt, lcm, log, log2, sqrt
from typing import *
"""
"""What the contests' own runners have imported before a program starts."""

SETUP = """\
def as_list(value):
    return list(value) if type(value) is tuple else value
"""
"""A tuple is as good as a list, as in the benchmark's own runner."""


@part
class LiveCodeBench(Adapter):
    """The statement, with its starter code where there is some, as the prompt; public and private
    tests judge, and the public ones, which the statement shows, may be quoted. It has no solutions.

    A problem without starter code reads standard input. Rows outside the window are left out, and
    the count of them is printed with it.
    """

    since: str | None = None
    """First day of the window of contests, as 2025-01-01; None for no bound."""
    until: str | None = None
    """Last day of the window; None for no bound."""

    @model_validator(mode="after")
    def has_a_window(self) -> LiveCodeBench:
        days = [date.fromisoformat(day) for day in (self.since, self.until) if day is not None]
        if days != sorted(days):
            raise ValueError("since comes after until")
        return self

    def __call__(self, row: Row) -> Problem:
        day = date.fromisoformat(text_of(row, "contest_date")[:10])
        is_early = self.since is not None and day < date.fromisoformat(self.since)
        is_late = self.until is not None and day > date.fromisoformat(self.until)
        if is_early or is_late:
            raise LeftOut(f"contest_date is outside {self.since or '...'} to {self.until or '...'}")
        return problem(row)


def problem(row: Row) -> Problem:
    """A problem of any date. Raises ValueError for a row whose tests cannot be read."""
    question, starter = text_of(row, "question_content"), row["starter_code"]
    if not isinstance(starter, str):
        raise ValueError("column 'starter_code' holds no text")
    public = tests_in(text_of(row, "public_test_cases"), "public_test_cases")
    private = tests_in(decoded(text_of(row, "private_test_cases")), "private_test_cases")
    name = function_name(row)
    tests = ProgramTests(
        assertions=tuple(assertion(name, test) for test in (*public, *private)) if name else (),
        setup=SETUP if name else "",
        preamble=PREAMBLE,
        cases=() if name else tuple(Case(*test) for test in (*public, *private)),
        shown=len(public),
    )
    asked = (
        f"Complete this class.\n\n{fenced(starter)}"
        if name
        else "Read the input from standard input and print the output."
    )
    return Problem(
        Prompt(
            id=f"livecodebench-{text_of(row, 'question_id')}",
            messages=(Message("user", f"{question}\n\n{asked}\n\n{ORDER}"),),
        ),
        Privileged(tests=tests),
    )


def function_name(row: Row) -> str | None:
    """The method that functional tests call, None for a program that reads standard input."""
    if not str(row["starter_code"]).strip():
        return None
    metadata = json_of(text_of(row, "metadata"), "metadata")
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError("column 'metadata' names no function under 'func_name'")
    return name


def assertion(name: str, test: tuple[str, str]) -> str:
    """A functional test as a statement: one argument, in JSON, on each line of its input."""
    given, expected = test
    arguments = [repr(json_of(line, "a test's input")) for line in given.strip().split("\n")]
    wanted = json_of(expected, "a test's output")
    return f"assert as_list(Solution().{name}({', '.join(arguments)})) == {wanted!r}"


def tests_in(text: str, column: str) -> list[tuple[str, str]]:
    """Input and output of every test in a JSON list of them."""
    tests = json_of(text, column)
    if not isinstance(tests, list) or not all(isinstance(test, Mapping) for test in tests):
        raise ValueError(f"column {column!r} holds no list of tests")
    pairs = [(test.get("input"), test.get("output")) for test in tests]
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise ValueError(f"column {column!r} holds a test without input or output")
    return cast("list[tuple[str, str]]", pairs)


def decoded(text: str) -> str:
    """The JSON text of private tests, which is plain or a pickle of itself, compressed, in base 64.

    The pickle is never loaded, because loading one runs it: its operations are read, and it is
    taken for what it holds only when they are those of one text. Raises ValueError otherwise.
    """
    if text.startswith("["):
        return text
    pickled = unpacked(text)
    try:
        operations = list(islice(pickletools.genops(pickled), OPERATIONS))
    except (ValueError, IndexError) as error:
        raise ValueError(f"column 'private_test_cases' holds no pickle ({error})") from None
    texts = [argument for code, argument, _ in operations if "UNICODE" in code.name]
    if not {code.name for code, _, _ in operations} <= OF_A_TEXT or len(texts) != 1:
        raise ValueError("column 'private_test_cases' is the pickle of something else than a text")
    return cast("str", texts[0])


def unpacked(text: str) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(base64.b64decode(text, validate=True), TESTS_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"column 'private_test_cases' cannot be unpacked ({error})") from None
    if not unpacker.eof:
        raise ValueError(f"column 'private_test_cases' is cut, or holds over {TESTS_BYTES} bytes")
    return data


def json_of(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON ({error})") from None
