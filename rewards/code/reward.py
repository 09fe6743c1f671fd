"""The reward for a program that passes the tests of its problem."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Annotated

from pydantic import Field

from opd.config import part
from opd.privileged import Problem, ProgramTests
from opd.reward import Reward
from opd.types import Rollout, Verdict
from rewards.code.extraction import program_in
from rewards.code.grading import grade, grade_stdio
from rewards.sandbox import Limits, Otherwise, isolation

MIB = 1 << 20
PATIENCE = 60.0
"""Seconds at least for a problem's own solution: a busy machine makes no problem wrong."""


@part
class PassesTests(Reward):
    """1 where the program in the last fenced block of a response passes every test, else 0.

    A problem whose own solution does not pass is refused at the start: its tests ask for what
    cannot be asked between boxes (callbacks, arguments changed in place), or they are wrong.
    """

    timeout: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Seconds that a program has for all assertions together, or for one case."""
    memory: Annotated[int, Field(ge=64, le=65536)] = 1024
    """MiB of address space of a program's process."""
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """By how much a printed number may differ, relative where the expected one is beyond 1."""
    reveals_hidden_tests: bool = False
    """Whether feedback, which teachers read, may quote tests that the prompt does not show."""
    checks_solutions: bool = True
    """Whether every problem's own solution is run at the start, some 30 ms each."""
    otherwise: Otherwise = "refuse"
    """What may stand in where bubblewrap does not work: see `rewards.sandbox`."""

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        tests = problem.privileged.tests
        assert tests is not None, "check() refuses a problem without tests"
        programs = [program_in(rollout.text) for rollout in rollouts]
        return [
            without_program(rollout)
            if program is None
            else self.graded(program, tests, self.timeout)
            for rollout, program in zip(rollouts, programs, strict=True)
        ]

    def graded(self, program: str, tests: ProgramTests, timeout: float) -> Verdict:
        judge = grade if tests.assertions else partial(grade_stdio, tolerance=self.tolerance)
        return judge(
            program,
            tests,
            timeout=timeout,
            limits=Limits(memory=self.memory * MIB),
            otherwise=self.otherwise,
            reveals_hidden=self.reveals_hidden_tests,
        )

    @property
    def concurrency(self) -> int:
        return os.cpu_count() or 1

    def provenance(self) -> dict[str, str]:
        # Not its proven layers: some come and go with the load of the machine.
        found = isolation(self.otherwise)
        return {"sandbox": found.stamp or found.tier}

    def check(self, problem: Problem) -> None:
        tests = problem.privileged.tests
        if tests is None or bool(tests.assertions) == bool(tests.cases):
            raise ValueError(
                "it has no tests, or both assertions and cases; let the adapter fill "
                "Privileged.tests with one of them"
            )
        isolation(self.otherwise)
        shown = problem.privileged.demonstration
        if not self.checks_solutions or shown is None:
            return
        program = program_in(shown)
        if program is None:
            raise ValueError("its demonstration has no fenced program; let the adapter write one")
        verdict = self.graded(program, tests, max(self.timeout, PATIENCE))
        if not verdict.success:
            raise ValueError(
                "its own solution does not pass its tests; leave the problem out "
                f"({verdict.feedback or 'no verdict'})"
            )


def without_program(rollout: Rollout) -> Verdict:
    was_cut = rollout.finish == "length"
    cause = "You ran out of room before you closed a" if was_cut else "You gave no"
    return Verdict("no_answer", 0.0, f"{cause} fenced code block with a program.")
