"""Runs programs that nobody trusts: bounded in time, memory and output, far from the host."""

from collections.abc import Mapping, Sequence

from rewards.sandbox.limits import Limits, Outcome
from rewards.sandbox.pool import map_bounded
from rewards.sandbox.running import NO_DESCRIPTORS, NO_FILES, Running, launch
from rewards.sandbox.tiers import Isolation, Otherwise, isolation

__all__ = [
    "Isolation",
    "Limits",
    "Otherwise",
    "Outcome",
    "Running",
    "isolation",
    "map_bounded",
    "run",
    "start",
]


def run(
    command: Sequence[str],
    *,
    files: Mapping[str, bytes] = NO_FILES,
    stdin: bytes = b"",
    limits: Limits | None = None,
    descriptors: Mapping[int, int] = NO_DESCRIPTORS,
    otherwise: Otherwise = "refuse",
) -> Outcome:
    """`start` and wait."""
    return start(
        command,
        files=files,
        stdin=stdin,
        limits=limits,
        descriptors=descriptors,
        otherwise=otherwise,
    ).wait()


def start(
    command: Sequence[str],
    *,
    files: Mapping[str, bytes] = NO_FILES,
    stdin: bytes = b"",
    limits: Limits | None = None,
    descriptors: Mapping[int, int] = NO_DESCRIPTORS,
    otherwise: Otherwise = "refuse",
) -> Running:
    """Start a program that nobody trusts, from any thread.

    `command` may begin with "python": the interpreter that runs us, with its packages. `files` lie
    in its working directory, where it can write nothing. `stdin` is a file too. `descriptors`: the
    number inside to one of ours, copied at once; nothing else is inherited. `otherwise` says what
    may stand in where bubblewrap does not work. Raises SandboxError when nothing may.
    """
    tier = isolation(otherwise).tier
    return launch(
        command, files=files, stdin=stdin, limits=limits, descriptors=descriptors, tier=tier
    )
