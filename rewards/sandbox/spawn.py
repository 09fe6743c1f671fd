"""Starts the process of a box with exactly the descriptors that it needs."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from rewards.sandbox import bubblewrap, system_calls
from rewards.sandbox.cgroup import Group
from rewards.sandbox.interpreter import interpreter
from rewards.sandbox.limits import Limits

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
    is_boxed: bool
    """Whether bubblewrap is there; otherwise only the limits of a process hold."""


@dataclass(frozen=True)
class Spawned:
    """A process and what can be read of it."""

    process: subprocess.Popen[bytes]
    readers: Mapping[str, int]
    """Descriptors that do not block: stdout, stderr, ready and, of a box, info."""


def spawn(job: Job, group: Group | None, belongings: ExitStack) -> Spawned:
    """`belongings` closes what must stay until the end. Raises OSError when the machine is full."""
    with ExitStack() as until_started:
        readers, writers = {}, {}
        for name in ("stdout", "stderr", "ready", *(["info"] if job.is_boxed else [])):
            readers[name], writers[name] = pipe(belongings, until_started)
        command = [interpreter().executable if job.command[0] == "python" else job.command[0]]
        command = shimmed([*command, *job.command[1:]], job, writers["ready"])
        passed = [writers["ready"], *job.moves.values()]
        folder = "/"
        if job.is_boxed:
            files = {name: memory_file(text, until_started) for name, text in job.files.items()}
            seccomp = memory_file(system_calls.program(), until_started)
            info = writers["info"]
            command = bubblewrap.command(
                command, files=files, limits=job.limits, info=info, seccomp=seccomp
            )
            passed += [*files.values(), seccomp, info]
        else:
            folder = folder_with(job.files, belongings)
        if group is not None:
            enter = [bubblewrap.executable("bash"), "-c", ENTER, "enter", " ".join(group.entries)]
            command = [*enter, *command]
        process = subprocess.Popen(
            command,
            stdin=sealed(memory_file(job.stdin, until_started)),
            stdout=writers["stdout"],
            stderr=writers["stderr"],
            pass_fds=passed,
            cwd=folder,
            env=dict(bubblewrap.ENVIRONMENT),
            start_new_session=True,
        )
    return Spawned(process, readers)


def shimmed(command: Sequence[str], job: Job, ready: int) -> list[str]:
    limits = job.limits
    numbers = (
        limits.memory // 1024,
        ceil(limits.seconds) + 1,
        ceil(limits.disk / 1024),
        # The shim is one too. Outside a box all processes of the user would be counted.
        limits.processes + 1 if job.is_boxed else "",
    )
    moves = " ".join(f"{inside}:{ours}" for inside, ours in job.moves.items())
    # where it really is, since a box shows no other folder
    bash = os.path.realpath(bubblewrap.executable("bash"))
    shim = [bash, "-c", SHIM, "shim", str(ready), moves]
    return [*shim, *map(str, numbers), *command]


def pipe(belongings: ExitStack, until_started: ExitStack) -> tuple[int, int]:
    """The end that we read and the one that the process writes."""
    reader, writer = os.pipe()
    belongings.callback(os.close, reader)
    until_started.callback(os.close, writer)
    os.set_blocking(reader, False)
    # Only the numbers of what goes through to the program's shim matter, but then of all alike.
    high = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, HIGH)
    until_started.callback(os.close, high)
    return reader, high


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
