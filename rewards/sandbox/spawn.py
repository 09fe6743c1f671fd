"""Starts the process of a box with exactly the descriptors that it needs."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Literal

from rewards.sandbox import bubblewrap, landlock, system_calls
from rewards.sandbox.cgroup import Group
from rewards.sandbox.interpreter import interpreter
from rewards.sandbox.limits import Limits

Tier = Literal["bwrap", "landlock", "external", "none"]
"""What stands between a program and this machine; nothing of ours in the last two."""
SHIM = Path(__file__).with_name("shim.sh").read_text()
ENTER = 'for file in $1; do echo 0 >"$file"; done; shift; exec "$@"'
HIGH = 100
"""Our descriptors from here on: they collide with none inside a box."""
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True)
class Job:
    """What to run."""

    command: tuple[str, ...]
    files: Mapping[str, bytes]
    stdin: bytes
    limits: Limits
    moves: Mapping[int, int]
    """The number inside to our descriptor, which is at least HIGH."""
    tier: Tier

    @property
    def is_contained(self) -> bool:
        """Whether a process of ours stands around the program; otherwise only limits hold."""
        return self.tier in ("bwrap", "landlock")


@dataclass(frozen=True)
class Spawned:
    """A process and what can be read of it."""

    process: subprocess.Popen[bytes]
    readers: Mapping[str, int]
    """Descriptors that do not block: stdout, stderr, ready and, of bubblewrap, info."""
    fatal: int
    """The signal that ends it: SIGTERM where it must end others first."""


@dataclass(frozen=True)
class Start:
    """How to run what is in a box."""

    command: list[str]
    passed: Sequence[int]
    folder: str = "/"
    environment: Mapping[str, str] = field(default_factory=lambda: bubblewrap.ENVIRONMENT)


def spawn(job: Job, group: Group | None, belongings: ExitStack) -> Spawned:
    """`belongings` closes what must stay until the end. Raises OSError when the machine is full."""
    with ExitStack() as until_started:
        readers, writers = {}, {}
        for name in ("stdout", "stderr", "ready", *(["info"] if job.tier == "bwrap" else [])):
            readers[name], writers[name] = pipe(belongings, until_started)
        if job.tier == "bwrap":
            start = boxed(job, writers, until_started)
        elif job.tier == "landlock":
            start = supervised(job, writers["ready"], until_started, belongings)
        else:
            start = bare(job, writers["ready"], belongings)
        command = start.command
        if group is not None:
            enter = [bubblewrap.executable("bash"), "-c", ENTER, "enter", " ".join(group.entries)]
            command = [*enter, *command]
        process = subprocess.Popen(
            command,
            stdin=sealed(memory_file(job.stdin, until_started)),
            stdout=writers["stdout"],
            stderr=writers["stderr"],
            pass_fds=[writers["ready"], *job.moves.values(), *start.passed],
            cwd=start.folder,
            env=dict(start.environment),
            start_new_session=True,
        )
    return Spawned(process, readers, SIGTERM if job.tier == "landlock" else SIGKILL)


def boxed(job: Job, writers: Mapping[str, int], until_started: ExitStack) -> Start:
    files = {name: memory_file(text, until_started) for name, text in job.files.items()}
    seccomp = memory_file(system_calls.program(), until_started)
    info = writers["info"]
    inner = shimmed(job, writers["ready"])
    command = bubblewrap.command(inner, files=files, limits=job.limits, info=info, seccomp=seccomp)
    return Start(command, [*files.values(), seccomp, info])


def supervised(job: Job, ready: int, until_started: ExitStack, belongings: ExitStack) -> Start:
    folder = belongings.enter_context(landlock.workplace(job.files))
    descriptors = {
        "seccomp": memory_file(system_calls.program(shares_host=True), until_started),
        "rules": landlock.rules(folder, until_started),
        "signals": landlock.signals(until_started),
    }
    high = {name: raised(number, until_started) for name, number in descriptors.items()}
    command = landlock.command(
        asked(job), settings={**high, "ready": ready}, moves=job.moves, limits=job.limits
    )
    where = str(folder / "box")
    return Start(command, [*high.values()], where, landlock.environment(folder))


def bare(job: Job, ready: int, belongings: ExitStack) -> Start:
    return Start(shimmed(job, ready), (), folder_with(job.files, belongings))


def asked(job: Job) -> list[str]:
    program = interpreter().executable if job.command[0] == "python" else job.command[0]
    return [program, *job.command[1:]]


def shimmed(job: Job, ready: int) -> list[str]:
    limits = job.limits
    numbers = (
        limits.memory // 1024,
        ceil(limits.seconds) + 1,
        ceil(limits.disk / 1024),
        # The shim is one too. Outside a box all processes of the user would be counted.
        limits.processes + 1 if job.tier == "bwrap" else "",
    )
    moves = " ".join(f"{inside}:{ours}" for inside, ours in job.moves.items())
    # where it really is, since a box shows no other folder
    bash = os.path.realpath(bubblewrap.executable("bash"))
    shim = [bash, "-c", SHIM, "shim", str(ready), moves]
    return [*shim, *map(str, numbers), *asked(job)]


def pipe(belongings: ExitStack, until_started: ExitStack) -> tuple[int, int]:
    """The end that we read and the one that the process writes."""
    reader, writer = os.pipe()
    belongings.callback(os.close, reader)
    until_started.callback(os.close, writer)
    os.set_blocking(reader, False)
    # Only the numbers of what goes through to the program's shim matter, but then of all alike.
    return reader, raised(writer, until_started)


def raised(descriptor: int, until: ExitStack) -> int:
    """A copy that collides with none inside."""
    high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, HIGH)
    until.callback(os.close, high)
    return high


def memory_file(content: bytes, until: ExitStack) -> int:
    """A descriptor of a file in memory, at its beginning."""
    descriptor = os.memfd_create("box", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    until.callback(os.close, descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def sealed(descriptor: int) -> int:
    """A program that opens its input again cannot write to it."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    return descriptor


def folder_with(files: Mapping[str, bytes], belongings: ExitStack) -> str:
    folder = Path(belongings.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o444)
    return str(folder)
