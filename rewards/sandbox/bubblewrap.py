"""The command line that puts a program into a box of bubblewrap's.

Root of the box is a small file system in memory that is made read-only last: /usr, the interpreter
and four devices are shown in it, /box holds the program's files, /tmp and /dev/shm can be written
up to a size. The standard /dev of bubblewrap is left out because its /dev/shm has no size.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from opd.errors import SandboxError
from rewards.sandbox.interpreter import SHARED, interpreter
from rewards.sandbox.limits import Limits

NOBODY = 65534
"""The user inside a box; outside too where we are root, whose processes are never limited."""
HOME = "/box"
"""Working directory of the program, read-only."""
NAMESPACES = (
    *("--unshare-all", "--unshare-user", "--disable-userns"),
    *("--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "box"),
)
LIFETIME = ("--as-pid-1", "--die-with-parent")
OWN_GROUP = ("--new-session",)
"""Else bubblewrap itself, outside, is in the program's process group, and a signal to a whole group
crosses namespaces: a program could make its own end look like a fault of the box."""
ENVIRONMENT = {  # all of it
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    # one thread each, so that a library's threads do not use up the processes and the memory
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
DEVICES = ("null", "zero", "random", "urandom")
PACKAGES = {"bwrap": "bubblewrap", "bash": "bash", "rm": "coreutils", "sleep": "coreutils"}
READ_ONLY = ("--remount-ro", "/")
FIRST_MOUNT_POINTS = ("/mnt", "/media", "/srv", "/opt", "/tmp")
NAMESPACE_SCRIPT = """
set -e
at=$1; shift
mount -t tmpfs -o mode=755,size=1m opd "$at"
n=0
for source; do
  if [ -d "$source" ]; then mkdir "$at/$n"; else : >"$at/$n"; fi
  mount --bind "$source" "$at/$n"
  n=$((n + 1))
done
echo ready
read -r _ || true
"""


def command(
    inner: Sequence[str],
    *,
    files: Mapping[str, int],
    limits: Limits,
    info: int,
    seccomp: int,
) -> list[str]:
    """`inner` in a box.

    `files` are descriptors to copy from, by name; `info` is told the process id of the box.
    """
    entry, sources = crossing()
    return [
        *(*entry, executable("bwrap"), *NAMESPACES, *LIFETIME, *OWN_GROUP),
        *system(),
        *("--proc", "/proc"),
        *devices(),
        # before the interpreter, which may live in /tmp
        *scratch(limits.disk),
        *(word for at, place in sources.items() for word in ("--ro-bind", place, at)),
        *link_to_interpreter(),
        *("--dir", HOME, "--chdir", HOME),
        *(word for name, source in files.items() for word in file(name, source)),
        *READ_ONLY,
        *filtered(seccomp),
        *("--info-fd", str(info), "--"),
        *inner,
    ]


def filtered(seccomp: int) -> tuple[str, ...]:
    return "--seccomp", str(seccomp)


def scratch(size: int) -> tuple[str, ...]:
    """What can be written, each of `size` bytes."""
    return (
        *("--size", str(size), "--perms", "1777", "--tmpfs", "/tmp"),
        *("--size", str(size), "--perms", "1777", "--tmpfs", "/dev/shm"),
    )


def file(name: str, source: int) -> tuple[str, ...]:
    return "--perms", "0444", "--file", str(source), f"{HOME}/{name}"


def system() -> Iterator[str]:
    """/usr, and what distributions keep beside it or link to it."""
    yield from ("--ro-bind", str(SHARED), str(SHARED))
    for name in ("bin", "lib", "lib64", "lib32", "sbin"):
        path = Path("/", name)
        if path.is_symlink():
            yield from ("--symlink", os.readlink(path), str(path))
        elif path.exists():
            yield from ("--ro-bind", str(path), str(path))
    yield from ("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache")


def devices() -> Iterator[str]:
    yield from ("--dir", "/dev")
    for name in DEVICES:
        yield from ("--dev-bind", f"/dev/{name}", f"/dev/{name}")
    yield from ("--symlink", "/proc/self/fd", "/dev/fd")
    for at, name in enumerate(("stdin", "stdout", "stderr")):
        yield from ("--symlink", f"/proc/self/fd/{at}", f"/dev/{name}")


def link_to_interpreter() -> tuple[str, ...]:
    ours = interpreter()
    if ours.executable == ours.target or Path(ours.executable).is_relative_to(SHARED):
        return ()
    return "--symlink", ours.target, ours.executable


def executable(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        package = PACKAGES.get(name, "util-linux")
        raise SandboxError(f"{name} is not on the PATH; apt-get install {package}")
    return found


def crossing() -> tuple[list[str], dict[str, str]]:
    """What to run bwrap by, and where the interpreter's places are, by their place in the box."""
    places = interpreter().places
    as_they_are = {place: place for place in places}
    if os.geteuid() != 0:
        return [], as_they_are
    nobody = str(NOBODY)
    if all(map(open_to_all, places)):
        drop = [executable("setpriv"), "--reuid", nobody, "--regid", nobody, "--clear-groups"]
        return [*drop, "--"], as_they_are
    at, namespace = namespace_with(places)
    # Named by our own process: a descriptor that it inherits would stay open inside.
    door = f"--mount=/proc/{os.getpid()}/fd/{namespace}"
    enter = [executable("nsenter"), door, "--setuid", nobody, "--setgid", nobody]
    sources = {place: f"{at}/{number}" for number, place in enumerate(places)}
    return [*enter, "--"], sources


def open_to_all(place: str) -> bool:
    """Whether any user can get to it."""
    path = Path(place).resolve()
    return all(folder.stat().st_mode & 0o001 for folder in path.parents)


@cache
def namespace_with(places: tuple[str, ...]) -> tuple[str, int]:
    """A mount namespace of ours in which all users can get to `places`: the folder that holds them
    by number, and a descriptor of the namespace, which lives as long as it is open.

    Root's own folder is closed to the user that a box runs as, and Python often lives there.
    """
    at = next(
        point
        for point in FIRST_MOUNT_POINTS
        if Path(point).is_dir() and not any(Path(place).is_relative_to(point) for place in places)
    )
    script = [executable("sh"), "-c", NAMESPACE_SCRIPT, "sh", at, *places]
    private = [executable("unshare"), "--mount", "--propagation", "private", "--", *script]
    with subprocess.Popen(
        private, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as maker:
        assert maker.stdin and maker.stdout and maker.stderr, "all are pipes"
        if maker.stdout.readline() != b"ready\n":
            with suppress(OSError):
                maker.kill()
            reason = maker.stderr.read().decode(errors="replace").strip()
            raise SandboxError(
                f"the Python in {interpreter().target} cannot be shown to a box: {reason}; "
                "use a Python outside /root, or run as another user"
            )
        return at, os.open(f"/proc/{maker.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
