"""Verdicts on programs: the program in one box, its tests in another, the verdict on a descriptor
that only the tests' box holds.

The rule for faults: what fails before the tests have heard of the program is the grader's fault and
gives `no_verdict`; all that fails later is the program's. A tester that dies later is no excuse, or
a program that sends it what kills it would escape its zero.
"""

from __future__ import annotations

import logging
import marshal
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import MAGIC_NUMBER
from io import FileIO
from pathlib import Path
from threading import Timer

from opd.privileged import ProgramTests
from opd.types import Verdict
from rewards.code.feedback import case_failure, test_failure
from rewards.code.output import is_same_output
from rewards.code.wire import WireError, decoded, encoded, refused
from rewards.sandbox import Limits, Otherwise, run, start

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent


def compiled(name: str) -> bytes:
    """A source beside this one as the file that Python would make of it."""
    code = compile((FOLDER / f"{name}.py").read_bytes(), f"{name}.py", "exec", dont_inherit=True)
    return MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


CANDIDATE, TESTER, SCRIPT = (
    {f"{name}.pyc": compiled(name)} for name in ("candidate", "tester", "script")
)
"""What runs inside boxes, compiled out here since every box would have to."""
SHARED = {
    "rewards/__init__.py": b"",
    "rewards/code/__init__.py": b"",
    "rewards/code/wire.pyc": compiled("wire"),
}
"""What they import, without what else these packages hold."""

PROGRAM_CHARACTERS = 1 << 20
VERDICT_BYTES = 1 << 15
STARTING = 30.0
"""Seconds for both boxes to come up, which are nobody's time."""
GRACE = 1.0
"""Seconds of the tests behind the program's, so that they can tell who was late."""

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
    limits = replace(limits or Limits(), seconds=STARTING + timeout + GRACE)
    with ExitStack() as stack:
        (asked, asks), (answered, answers), (heard, tells) = (pipe(stack) for _ in range(3))
        candidate = start(
            (*PYTHON, "candidate.pyc"),
            files=SHARED | CANDIDATE | program_files(tests.preamble, program),
            limits=limits,
            otherwise=otherwise,
            descriptors={3: asked.fileno(), 4: answers.fileno()},
        )
        stack.callback(candidate.kill)
        tester = start(
            (*PYTHON, "tester.pyc"),
            files=tester_files(token, tests, timeout),
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
        # A box that has gone by itself is let tell how: killed from outside, it is nobody's fail.
        has_gone = told.final is not None and told.final.get("stopped") == "ended"
        killer = Timer(GRACE if has_gone else 0.0, candidate.kill)
        killer.start()
        endings = [testers_end.ending, candidate.wait().ending]
        killer.cancel()
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
            (*PYTHON, "script.pyc"),
            files=SCRIPT | program_files(tests.preamble, program),
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


def tester_files(token: str, tests: ProgramTests, timeout: float) -> dict[str, bytes]:
    parts = (tests.preamble, tests.setup, list(tests.assertions))
    job = encoded((token, *parts, [STARTING, timeout, GRACE]), refused)
    return SHARED | TESTER | {"job": job}


def program_files(preamble: str, program: str) -> dict[str, bytes]:
    texts = {"preamble.py": preamble, "program.py": program}
    return {name: text.encode(errors="replace") for name, text in texts.items()}


def read(end: FileIO) -> bytes:
    """What a pipe holds."""
    os.set_blocking(end.fileno(), False)
    return end.read(VERDICT_BYTES) or b""


def what_was_told(data: bytes, token: str) -> Told:
    """The frames that carry the token; other bytes, which tests may write, end the reading."""
    frames: list[dict[str, object]] = []
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        try:
            what = decoded(data[4:end], {})
        except WireError:
            break
        if not isinstance(what, dict) or what.get("token") != token:
            break
        frames.append(what)
        data = data[end:]
    final = next((what for what in frames if what["status"] != "started"), None)
    has_started = bool(frames) if final is None else final["status"] != "fault"
    return Told(has_started, final)
