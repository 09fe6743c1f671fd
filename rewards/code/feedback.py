"""What a verdict on a program says of a failure: text for a teacher, one or a few lines.

Of a hidden test it tells which one failed and what the program itself said, since the program never
knew what was expected. Nothing that the tests know, their own errors' texts included, stands in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

from opd.privileged import Case, ProgramTests
from rewards.sandbox import Outcome

QUOTED_CHARACTERS = 400
LINE_CHARACTERS = 120
PLACE = re.compile(r'File "program\.py", line (\d+)')

STOPPED = {
    "late": "your program does not finish in time",
    "ended": "your program ends its own process",
    "garbled": "your program gives what is no value, or too large a one",
}


def test_failure(
    told: Mapping[str, object], program: str, tests: ProgramTests, reveals_hidden: bool
) -> str:
    """Why the first failing assertion fails; `told` is what the tester says."""
    number = cast("int", told["test"])
    if number < 1:
        place = "Your program cannot be loaded" if number < 0 else "The tests cannot be set up"
        return f"{place}: {own_fault(told, program) or 'it is of no use to them'}."
    is_shown = reveals_hidden or number <= tests.shown
    which = f"{'Test' if is_shown else 'Hidden test'} {number} of {len(tests.assertions)} fails"
    fault = own_fault(told, program)
    if not is_shown:
        return f"{which}: {fault or 'it gets a wrong result'}."
    asserted = quoted(tests.assertions[number - 1].strip())
    return f"{which}: {fault or its_fault(told)}. The test is: {asserted}"


def own_fault(told: Mapping[str, object], program: str) -> str | None:
    """What the program itself did wrong, None when it only gave a wrong value."""
    if told["stopped"] and not told["raised"]:
        return STOPPED[str(told["stopped"])]
    if told["error"] == "NameError" and not told["raised"]:
        return f"a name is missing in your program: {quoted(str(told['says']))}"
    if not told["raised"]:
        return None
    kind, message, line = cast("tuple[str, str, int]", told["raised"])
    return f"your program raises {error_text(kind, message)}{at_line(line, program)}"


def its_fault(told: Mapping[str, object]) -> str:
    """What a test that may be shown saw."""
    what = "it does not hold"
    if told["error"] != "AssertionError" or told["says"] not in ("", "''"):
        what += f" ({told['error']}: {quoted(str(told['says']))})"
    if told["given"]:
        what += f"; the last call, {quoted(str(told['call']))}, gave {quoted(str(told['given']))}"
    return what


def case_failure(
    number: int,
    tests: ProgramTests,
    outcome: Outcome,
    program: str,
    reveals_hidden: bool,
) -> str:
    """Why the `number`th case, from 1, fails."""
    is_shown = reveals_hidden or number <= tests.shown
    which = f"{'Case' if is_shown else 'Hidden case'} {number} of {len(tests.cases)} fails"
    fault = f"{which}: {printed_fault(outcome, program)}."
    return f"{fault}{printed(tests.cases[number - 1], outcome)}" if is_shown else fault


def printed(case: Case, outcome: Outcome) -> str:
    texts = {
        "Input": case.given,
        "Expected output": case.expected,
        "Your output": outcome.stdout.decode(errors="replace"),
    }
    return "".join(f"\n{name}: {quoted(text)}" for name, text in texts.items())


def printed_fault(outcome: Outcome, program: str) -> str:
    if outcome.ending == "timeout":
        return STOPPED["late"]
    if outcome.ending == "output":
        return "your program prints too much"
    if outcome.ending == "signal":
        return f"your program is ended by signal {outcome.code}"
    if outcome.code == 0:
        return "your program prints a wrong output"
    errors = outcome.stderr.decode(errors="replace").strip()
    places = PLACE.findall(errors)
    last = errors.rpartition("\n")[2]
    where = at_line(int(places[-1][:9]), program) if places else ""
    return f"your program ends with exit code {outcome.code}, saying {quoted(last)}{where}"


def error_text(kind: str, message: str) -> str:
    return quoted(f"{kind}: {message}" if message else kind)


def at_line(number: int, program: str) -> str:
    lines = program.split("\n")
    if not 1 <= number <= len(lines):
        return ""
    return f" in line {number}: {quoted(lines[number - 1].strip(), LINE_CHARACTERS)}"


def quoted(text: str, most: int = QUOTED_CHARACTERS) -> str:
    """A text cut to size, with what could move a reader's terminal or hide from him spelt out."""
    cut = text[:most] + ("..." if len(text) > most else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
