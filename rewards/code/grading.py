"""Verdicts on programs: the program in one box, its tests in another, the verdict on a descriptor
that only the tests' box holds.

The rule for faults: what fails before the tests have heard of the program is the grader's fault and
gives `no_verdict`; all that fails after it is the program's. A tester that dies later is not excused,
for then a program that sends it what kills it would escape its zero.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import cast

from opd.privileged import ProgramTests
from opd.types import Verdict
from rewards.code.feedback import case_failure, test_failure
from rewards.code.output import is_same_output
from rewards.sandbox import Limits, Otherwise, run, start

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
BOXED = {name: (FOLDER / name).read_bytes() for name in ("wire.py", "candidate.py", "tester.py", "script.py")}

PROGRAM_CHARACTERS = 1 << 20
VERDICT_BYTES = 1 << 15
GRACE = 2.0
"""Seconds that a box gets over the program's own, so that the tester can tell who was late."""

PYTHON = ("python", "-s")


@dataclass(frozen=True)
class Told:
    """What a tester told of one program."""

    has_started: bool
    """Whether the tests ran, and so heard of the program."""
    final: Mapping[str, object] | None


def grade(
    program: str,
    tests: ProgramTests,
    *,
    timeout: float = 10.0,
    limits: Limits | None = None,
    otherwise: Otherwise = "refuse",
    reveals_hidden: bool = False,
) -> Verdict:
    """Whether `program` passes all assertions of `tests`, which run in order up to the first that
    fails.

    `timeout`, in seconds of wall clock, is for all of them together and takes the place of
    `limits.seconds`. Feedback quotes the first `tests.shown` assertions; of the others it tells no
    more than the program's own error, unless `reveals_hidden`. Safe from any thread. Raises
    SandboxError where no box can be had. Split grading as in the notes on reward hacking
    (arXiv 2605.02964, 2511.21654); the protocol is ours.
    """
    if len(program) > PROGRAM_CHARACTERS:
        return too_long(program)
    token = secrets.token_hex(16)
    limits = replace(limits or Limits(), seconds=timeout + GRACE)
    with ExitStack() as stack:
        (asked, asks), (answered, answers), (heard, tells) = (pipe(stack) for _ in range(3))
        candidate = start(
            (*PYTHON, "candidate.py"),
            files=candidate_files("candidate.py", tests.preamble, program),
            limits=limits,
            otherwise=otherwise,
            descriptors={3: asked.fileno(), 4: answers.fileno()},
        )
        stack.callback(candidate.kill)
        tester = start(
            (*PYTHON, "tester.py"),
            files={name: BOXED[name] for name in ("wire.py", "tester.py")},
            stdin=job(token, tests, timeout),
            limits=limits,
            otherwise=otherwise,
            descriptors={3: answered.fileno(), 4: asks.fileno(), 5: tells.fileno()},
        )
        stack.callback(tester.kill)
        # Held here, they would keep a box waiting for another that has gone.
        for end in (asked, asks, answered, answers, tells):
            end.close()
        testers_end = tester.wait()
        told = what_was_told(read(heard), token)
        # One that has gone by itself says how: killed from outside, it is no fault of the program.
        if told.final is None or told.final.get("stopped") != "ended":
            candidate.kill()
        endings = [testers_end.ending, candidate.wait().ending]
    if told.final is not None and told.final["status"] == "pass":
        return Verdict("pass", 1.0)
    if "fault" in endings or not told.has_started:
        logger.warning("no verdict on a program: %s", fault(told, endings))
        return Verdict("no_verdict", 0.0)
    return failed(
        "The tests do not come to an end on what your program gives them."
        if told.final is None
        else test_failure(told.final, program, tests, reveals_hidden)
    )


def grade_stdio(
    program: str,
    tests: ProgramTests,
    *,
    timeout: float = 10.0,
    limits: Limits | None = None,
    otherwise: Otherwise = "refuse",
    tolerance: float = 0.0,
    reveals_hidden: bool = False,
) -> Verdict:
    """Whether `program` prints what each case of `tests` expects, in order up to the first that
    fails.

    Every case has a box and `timeout` seconds of its own. Outputs are compared out here, so that
    what is expected never enters a box; `is_same_output` says when they are the same. A program
    must also end with exit code 0. Feedback is as in `grade`. Raises SandboxError where no box can
    be had.
    """
    if len(program) > PROGRAM_CHARACTERS:
        return too_long(program)
    for number, case in enumerate(tests.cases, start=1):
        outcome = run(
            (*PYTHON, "script.py"),
            files=candidate_files("script.py", tests.preamble, program),
            stdin=case.given.encode(),
            limits=replace(limits or Limits(), seconds=timeout),
            otherwise=otherwise,
        )
        if outcome.ending == "fault":
            logger.warning("no verdict on a program: its box failed")
            return Verdict("no_verdict", 0.0)
        # A surrogate stands for a byte that is no text, and equals nothing that is expected.
        printed = outcome.stdout.decode(errors="surrogateescape")
        is_right = is_same_output(printed, case.expected, tolerance)
        if outcome.ending != "exit" or outcome.code != 0 or not is_right:
            return failed(case_failure(number, tests, outcome, program, reveals_hidden))
    return Verdict("pass", 1.0)


def pipe(stack: ExitStack) -> tuple[FileIO, FileIO]:
    """Both ends of a pipe, closed with the stack or before."""
    reads, writes = os.pipe()
    return stack.enter_context(FileIO(reads)), stack.enter_context(FileIO(writes, "w"))


def failed(feedback: str) -> Verdict:
    return Verdict("fail", 0.0, feedback)


def too_long(program: str) -> Verdict:
    return failed(
        f"Your program has {len(program)} characters, and {PROGRAM_CHARACTERS} are allowed."
    )


def fault(told: Told, endings: Sequence[str]) -> str:
    if "fault" in endings:
        return "a box failed"
    error = "no word" if told.final is None else told.final["error"]
    return f"its tests ended with {error} before they asked anything of it"


def job(token: str, tests: ProgramTests, timeout: float) -> bytes:
    parts = {"preamble": tests.preamble, "setup": tests.setup, "assertions": tests.assertions}
    return json.dumps({"token": token, **parts, "seconds": timeout}).encode()


def candidate_files(script: str, preamble: str, program: str) -> dict[str, bytes]:
    texts = {"preamble.py": preamble, "program.py": program}
    sources = {name: text.encode(errors="replace") for name, text in texts.items()}
    return {"wire.py": BOXED["wire.py"], script: BOXED[script], **sources}


def read(end: FileIO) -> bytes:
    """What a pipe holds."""
    os.set_blocking(end.fileno(), False)
    return end.read(VERDICT_BYTES) or b""


def what_was_told(lines: bytes, token: str) -> Told:
    """The lines that carry the token; tests may have written others."""
    told: list[dict[str, object]] = []
    for line in lines.splitlines():
        with suppress(ValueError):
            what = json.loads(line)
            if isinstance(what, dict) and what.get("token") == token:
                told.append(cast("dict[str, object]", what))
    final = next((what for what in told if what["status"] != "started"), None)
    has_started = final is not None and final["status"] != "fault"
    return Told(has_started or (final is None and bool(told)), final)
