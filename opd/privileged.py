"""The types that hold what a student must never see; `rollout` engines and `evaluation` may not
import this module (an import contract says so)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from opd.types import Prompt, Rollout, Verdict


@dataclass(frozen=True, repr=False)
class Case:
    """One run of a program: what it reads and what it must then print."""

    given: str
    expected: str


@dataclass(frozen=True, repr=False)
class ProgramTests:
    """What a program must pass: assertions on its functions, or cases of standard input."""

    assertions: tuple[str, ...] = ()
    """Statements, each of which raises when the program is wrong."""
    setup: str = ""
    """Statements that stand before the assertions: imports and helpers of the tests."""
    preamble: str = ""
    """Statements that stand before the program: what its prompt has given it."""
    cases: tuple[Case, ...] = ()
    shown: int = 0
    """How many of the first assertions or cases the prompt shows, so that feedback may too."""


@dataclass(frozen=True, repr=False)
class Privileged:
    """What only rewards and teacher views may read. Printing it shows no content."""

    solution: str | None = None
    """Worked reasoning."""
    answer: str | None = None
    """Short and checkable."""
    demonstration: str | None = None
    """A whole response as an expert would write it."""
    tests: ProgramTests | None = None
    """For a problem that is answered by a program."""

    def __repr__(self) -> str:
        return "Privileged(<redacted>)"


@dataclass(frozen=True)
class Problem:
    """A prompt with its privileged side: the only object that holds both."""

    prompt: Prompt
    privileged: Privileged
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Columns of its row by which the teacher tells problems apart."""


@dataclass(frozen=True)
class Group:
    """All rollouts of one problem with their verdicts: the unit of credit and of views."""

    problem: Problem
    rollouts: tuple[Rollout, ...]
    """`[G]`."""
    verdicts: tuple[Verdict, ...]
    """`[G]`."""

    @property
    def pass_rate(self) -> float:
        """Share of judged rollouts that succeeded, in [0, 1]; 0 when none was judged."""
        judged = [v for v in self.verdicts if v.status != "no_verdict"]
        return sum(v.success for v in judged) / len(judged) if judged else 0.0


@dataclass(frozen=True)
class Trajectory:
    """A judged rollout with what the objective needs to know of it."""

    rollout: Rollout
    verdict: Verdict
    advantage: float
    pass_rate: float
    views: Mapping[str, tuple[int, ...]]
    """View name to the teacher's prompt ids `[P_view]`; absent where it has nothing to say."""
    earlier_logprobs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Context to `[T]` nats behind it under the policy as it stood before the step's first update;
    absent where no loss reads them, or where that policy is the trained one."""
