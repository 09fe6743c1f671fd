"""What a program may take, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Ending = Literal["exit", "signal", "timeout", "output", "fault"]


@dataclass(frozen=True)
class Limits:
    """What one program may take. Raises ValueError for a limit that limits nothing."""

    seconds: float = 10.0
    """Of wall clock, counted from the start of the program itself."""
    memory: int = 1 << 30
    """Bytes of address space of each process; of the whole box where cgroups can be written."""
    processes: int = 32
    """Processes and threads at a time; a few hundred more by Landlock, which shares a user."""
    output: int = 1 << 20
    """Bytes of standard output, and as many of standard error."""
    disk: int = 64 << 20
    """Bytes of /tmp, and as many of /dev/shm; by Landlock, of each file."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(f"seconds is {self.seconds}; give a finite number of at least 0")
        for name in ("memory", "processes", "output", "disk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")


@dataclass(frozen=True)
class Outcome:
    """How a program ended and what it wrote."""

    ending: Ending
    """`fault`: the box failed and nothing is known of the program. All else is its own doing."""
    code: int
    """The exit status, or the signal that ended it. As in shells, a program that exits with 128 + n
    cannot be told from one that signal n ended."""
    stdout: bytes
    stderr: bytes
    """What was written until the end, at most `Limits.output` bytes."""
    seconds: float
    """Of wall clock that the program ran."""
