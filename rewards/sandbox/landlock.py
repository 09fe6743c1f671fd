"""What a program may open where bubblewrap does not work: rules of Landlock and who applies them.

Rules hold for a process and all that it starts, and need no privileges. Programs still see the
host's processes by number and the names of its files, and share its network devices and clocks.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from math import ceil
from pathlib import Path

from opd.errors import SandboxError
from rewards.sandbox import bubblewrap
from rewards.sandbox.interpreter import SHARED, interpreter
from rewards.sandbox.limits import Limits

LAUNCHER = Path(__file__).with_name("launcher.py").read_text()
CREATE_RULESET, ADD_RULE = 444, 445
"""System calls: one number on every architecture."""
LEAST_VERSION = 6
"""Of Landlock: the first that keeps signals in, Linux 6.12."""
EXECUTE, WRITE_FILE, READ_FILE, READ_FOLDER = (1 << bit for bit in range(4))
TRUNCATE = 1 << 14
ALL_OF_FILES = (1 << 16) - 1
MAKE_SPECIAL = (1 << 6) | (1 << 9) | (1 << 11) | (1 << 15)
"""Devices and sockets, and requests to devices."""
OF_NETWORK = 0b11
"""Binding and calling by TCP."""
SOCKETS, SIGNALS = 1, 2
"""Scopes: abstract sockets and signals that stay in."""
READ = EXECUTE | READ_FILE | READ_FOLDER
SCRATCH = ALL_OF_FILES & ~MAKE_SPECIAL
DEVICES = READ_FILE | WRITE_FILE | TRUNCATE
FOR_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
SPARE_PROCESSES = 256
"""Of the user that boxes run as, whose processes the kernel counts together: boxes that start while
this one runs."""


class Handled(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scopes", ctypes.c_uint64),
    )


class Rule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("place", ctypes.c_int32))


def version() -> int:
    """Of the kernel's Landlock; 0 where there is none."""
    return max(0, kernel().syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1))


@cache
def kernel() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def user() -> int:
    """Whom a program runs as, 0 for whoever we are."""
    return bubblewrap.NOBODY if os.geteuid() == 0 else 0


def check() -> None:
    """Raises SandboxError where this cannot work."""
    if (found := version()) < LEAST_VERSION:
        raise SandboxError(f"Landlock is of version {found}; {LEAST_VERSION} (Linux 6.12) holds")
    bubblewrap.executable("rm")
    closed = [place for place in interpreter().places if not bubblewrap.open_to_all(place)]
    if user() and closed:
        raise SandboxError(
            f"{closed[0]} is closed to the user that a program runs as; "
            "use a Python outside /root, or run as another user"
        )


def ruleset(handled: Handled, allowed: Mapping[Path, int], until: ExitStack) -> int:
    """A descriptor of rules: of what is handled, only what is allowed beneath each place."""
    rules = called(CREATE_RULESET, ctypes.byref(handled), ctypes.sizeof(handled), 0)
    until.callback(os.close, rules)
    for place, rights in allowed.items():
        opened = os.open(place, os.O_PATH | os.O_CLOEXEC)
        try:
            rule = Rule(rights if place.is_dir() else rights & FOR_FILES, opened)
            called(ADD_RULE, rules, 1, ctypes.byref(rule), 0)
        finally:
            os.close(opened)
    return rules


def called(number: int, *given: object) -> int:
    result = kernel().syscall(ctypes.c_long(number), *given)
    if result == -1:
        raise OSError(ctypes.get_errno(), "Landlock refused its rules")
    return result


def rules(folder: Path, until: ExitStack) -> int:
    """Of a program whose files are in `folder`."""
    names = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
    readable = (SHARED, *map(Path, (*names, *interpreter().places)), folder / "box")
    allowed = {place: READ for place in readable if place.exists()}
    allowed |= {Path("/dev", name): DEVICES for name in bubblewrap.DEVICES}
    allowed[folder / "tmp"] = SCRATCH
    return ruleset(Handled(ALL_OF_FILES, OF_NETWORK, SOCKETS | SIGNALS), allowed, until)


def signals(until: ExitStack) -> int:
    """Of the first process, which only keeps its signals in."""
    return ruleset(Handled(0, 0, SIGNALS), {}, until)


@contextmanager
def workplace(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A folder with `box`, which holds the files, and `tmp`, which can be written."""
    folder = Path(tempfile.mkdtemp(prefix="opd-box-"))
    try:
        folder.chmod(0o711)
        (folder / "box").mkdir()
        for name, content in files.items():
            path = folder / "box" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o444)
        (folder / "tmp").mkdir()
        if user():
            os.chown(folder / "tmp", user(), user())
        yield folder
    finally:
        # It ends however deep a program has nested its folders.
        subprocess.run([bubblewrap.executable("rm"), "-rf", "--", folder], check=False)


def environment(folder: Path) -> dict[str, str]:
    place = str(folder / "tmp")
    return {**bubblewrap.ENVIRONMENT, "HOME": place, "TMPDIR": place}


def command(
    inner: Sequence[str], *, settings: Mapping[str, int], moves: Mapping[int, int], limits: Limits
) -> list[str]:
    """`inner` by the launcher; `settings` are its descriptors by name."""
    numbers = {
        **settings,
        **limits_of(limits),
        "user": user(),
        "parent": os.getpid(),
        "highest": max([*settings.values(), *moves.values()]),
    }
    words = " ".join(f"{name}={number}" for name, number in numbers.items())
    moved = " ".join(f"{inside}:{ours}" for inside, ours in moves.items())
    return [interpreter().executable, "-I", "-S", "-c", LAUNCHER, words, moved, *inner]


def limits_of(limits: Limits) -> dict[str, int]:
    processes = tasks_of_user() + limits.processes + SPARE_PROCESSES
    allowed = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    return {
        "CORE": 0,
        "NOFILE": 64,
        "FSIZE": limits.disk,
        "NPROC": processes if allowed == resource.RLIM_INFINITY else min(processes, allowed),
        "CPU": ceil(limits.seconds) + 2,
        "AS": limits.memory,
    }


def tasks_of_user() -> int:
    """Processes and threads of the user that a program runs as."""
    owner, count = user() or os.geteuid(), 0
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                count += tasks_of(entry, owner)
    return count


def tasks_of(process: os.DirEntry[str], owner: int) -> int:
    try:
        is_theirs = process.stat().st_uid == owner
        return len(os.listdir(f"{process.path}/task")) if is_theirs else 0
    except OSError:
        return 0  # it has ended
