"""What hostile programs come to, and that the host is as it was after each of them."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from rewards.sandbox import Outcome, run
from tests.sandbox.programs import NUMBERS, PRELUDE, PROGRAMS

SECRET_TEXT = "not for programs"
LEEWAY = 3.0
"""Seconds beyond a program's own deadline, on a machine that does other work."""
NOISE = 256 << 20
"""Bytes that others on this machine may write meanwhile."""


@dataclass
class Host:
    """What a program must not touch."""

    secret: Path
    listeners: tuple[socket.socket, socket.socket]
    victim: subprocess.Popen[bytes]
    mark: str
    free: int

    @property
    def given(self) -> tuple[object, ...]:
        """What every program is told of it."""
        tcp, unix = self.listeners
        port, name = tcp.getsockname()[1], unix.getsockname()
        return str(self.secret), __file__, port, name, self.victim.pid, self.mark

    def check(self) -> None:
        """That it is as it was."""
        assert self.secret.read_text() == SECRET_TEXT
        assert Path(__file__).exists() and Path(os.__file__).exists()
        for listener in self.listeners:
            with pytest.raises(BlockingIOError):
                listener.accept()
        assert self.victim.poll() is None, "a process of the host was killed"
        assert not survivors(self.mark), "a process outlived its box"
        assert not any((Path(folder) / self.mark).exists() for folder in ("/tmp", "/dev/shm"))

    def check_space(self) -> None:
        assert self.free - free_bytes() < NOISE


def survivors(mark: str) -> list[str]:
    """Process ids whose command line holds `mark`, apart from our own."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if mark.encode() in line and int(process.name) != os.getpid():
            found.append(process.name)
    return found


def free_bytes() -> int:
    return sum(
        info.f_bavail * info.f_frsize
        for info in map(os.statvfs, ("/dev/shm", tempfile.gettempdir()))
    )


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile("w"))
        file.write(SECRET_TEXT)
        file.flush()
        os.chmod(file.name, 0o666)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(f"\0opd-{os.getpid()}")
        unix.listen()
        for listener in (tcp, unix):
            listener.setblocking(False)
        # of the user that boxes run as, whom they could signal if they saw it
        user = 65534 if os.geteuid() == 0 else None
        victim = subprocess.Popen(["sleep", "600"], user=user)
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        environment = pytest.MonkeyPatch()
        environment.setenv("OPD_SECRET", SECRET_TEXT)
        stack.callback(environment.undo)
        mark = f"opd-mark-{os.getpid()}-{time.monotonic_ns()}"
        host = Host(Path(file.name), (tcp, unix), victim, mark, free_bytes())
        yield host
        host.check_space()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_gets_nowhere(name: str, host: Host) -> None:
    program = PROGRAMS[name]
    if program.only_on not in ("", platform.machine()):
        pytest.skip(f"only on {program.only_on}")
    prelude = PRELUDE.format(given=host.given, numbers=NUMBERS) if program.has_prelude else ""
    outcome = run(
        ["python", "-I", "main.py", host.mark],
        files={"main.py": (prelude + program.source).encode()},
        limits=program.limits,
    )
    assert program.check(outcome), brief(outcome)
    assert outcome.seconds <= program.limits.seconds + LEEWAY
    host.check()


def brief(outcome: Outcome) -> str:
    return f"{outcome.ending} {outcome.code} {outcome.stdout[-300:]} {outcome.stderr[-600:]}"


def test_the_checks_of_the_host_see_what_they_should(host: Host) -> None:
    """A bare process does what boxed ones must not."""
    script = (
        "import socket, sys, time\n"
        "socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "time.sleep(60)"
    )
    port = host.listeners[0].getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", script, str(port), host.mark]) as bare:
        try:
            host.listeners[0].settimeout(20)
            host.listeners[0].accept()[0].close()
            host.listeners[0].setblocking(False)
            with pytest.raises(AssertionError, match="outlived"):
                host.check()
        finally:
            bare.kill()
