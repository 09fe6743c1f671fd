"""When two printed outputs are the same."""

from __future__ import annotations

import re
from decimal import Decimal

NUMERAL = re.compile(
    r"[-+]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][-+]?[0-9]{1,4})?"
)


def is_same_output(given: str, expected: str, tolerance: float = 0.0) -> bool:
    """Whether two outputs have the same lines, whitespace at their ends and around the whole left
    out. Lines that differ as text are the same when they hold as many numbers, equal one by one as
    exact decimals (`1.0` and `1`); that is LiveCodeBench's rule (arXiv 2403.07974). With a
    `tolerance`, numbers may differ by as much, times the expected one where that is beyond 1; ours.
    """
    ours, theirs = ([line.strip() for line in t.strip().split("\n")] for t in (given, expected))
    return len(ours) == len(theirs) and all(
        one == other or same_numbers(one, other, tolerance)
        for one, other in zip(ours, theirs, strict=True)
    )


def same_numbers(given: str, expected: str, tolerance: float) -> bool:
    ours, theirs = given.split(), expected.split()
    return len(ours) == len(theirs) and all(
        same_number(one, other, tolerance) for one, other in zip(ours, theirs, strict=True)
    )


def same_number(given: str, expected: str, tolerance: float) -> bool:
    if not (NUMERAL.fullmatch(given) and NUMERAL.fullmatch(expected)):
        return False
    if Decimal(given) == Decimal(expected):
        return True
    wanted = float(expected)
    return abs(float(given) - wanted) <= tolerance * max(1.0, abs(wanted)) < float("inf")
