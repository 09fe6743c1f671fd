"""How far programs can be kept away from this machine, proven before the first of them runs."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, Literal

from opd.errors import SandboxError
from rewards.sandbox import bubblewrap, system_calls
from rewards.sandbox.limits import Limits, Outcome
from rewards.sandbox.running import launch

Tier = Literal["bwrap", "external", "none"]
Otherwise = Literal["refuse", "external", "unsandboxed"]
"""What may stand in where bubblewrap does not work: nothing; a boundary around this whole machine
that the user vouches for; nothing at all, which the environment has to accept as well."""

ACCEPTANCE = "OPD_RUN_UNSANDBOXED"
PROBE = Path(__file__).with_name("probe.py")
STUBBORN = b"""\
import signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
    signal.signal(number, signal.SIG_IGN)
while True:
    pass
"""
TALKATIVE = b"while True:\n    print('x' * 4096)\n"
PROBED = Limits(memory=128 << 20, disk=1 << 20)
DEADLINE = Limits(seconds=0.1)
TALK = Limits(seconds=5, output=1 << 12)
MOST_FORKS = 100
TOUCHED = 70 << 20
"""Bytes of each of three children: more together than one box may have."""
SEPARATE = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
WRITABLE = {"/tmp", "/dev/shm", "/proc", *(f"/dev/{name}" for name in bubblewrap.DEVICES)}
SHELL_VARIABLES = {"PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE"}
OPTIONAL = {"group"}
"""Layers that a box can do without."""
REMEDIES = (
    "on Debian and Ubuntu `apt-get install bubblewrap` (0.8 or later) gives it; where AppArmor "
    "forbids user namespaces (Ubuntu 23.10 or later), `sysctl -w "
    "kernel.apparmor_restrict_unprivileged_userns=0` allows them; in Docker, whose seccomp profile "
    "forbids them, start the container with `--security-opt seccomp=unconfined --security-opt "
    "apparmor=unconfined --security-opt systempaths=unconfined`"
)

Found = Mapping[str, Any]
"""What the probe says."""


@dataclass(frozen=True)
class Isolation:
    """What stands between a program and this machine."""

    tier: Tier
    layers: tuple[str, ...]
    """Those that the self-test has proven; none is claimed that it has not."""
    sentence: str

    def __str__(self) -> str:
        return self.sentence

    @property
    def stamp(self) -> str:
        """What every report of such a run must carry, "" when nothing."""
        return "UNSANDBOXED" if self.tier == "none" else ""


@dataclass(frozen=True)
class Tested:
    """What the self-test came to: proven layers, or why there is no box."""

    layers: tuple[str, ...] = ()
    cause: str = ""


def isolation(otherwise: Otherwise = "refuse") -> Isolation:
    """What programs run in here. The first call tests it, in about a third of a second.

    Raises SandboxError where bubblewrap does not hold and nothing may stand in.
    """
    with lock:
        tested = self_test()
    if not tested.cause:
        layers = ", ".join(tested.layers)
        return Isolation("bwrap", tested.layers, f"bubblewrap, proven: {layers}")
    if otherwise == "external":
        said = "the user declares a boundary around this machine; ours is only a deadline and caps"
        return Isolation("external", (), said)
    if otherwise == "unsandboxed" and os.environ.get(ACCEPTANCE) == "yes":
        return Isolation("none", (), f"UNSANDBOXED, by the user's own choice: {tested.cause}")
    consent = (
        f"; the setting alone is not enough to go without: {ACCEPTANCE}=yes must be set too"
        if otherwise == "unsandboxed"
        else ""
    )
    raise SandboxError(
        f"programs that a model wrote cannot be kept in a box here: {tested.cause}; "
        f"{REMEDIES}{consent}"
    )


lock = threading.Lock()
# No process is forked in the midst of a test, or the child would wait for ever.
os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


@cache
def self_test() -> Tested:
    """Try to get out of a box, once a process."""
    try:
        return tried()
    except SandboxError as error:
        return Tested(cause=str(error))


def tried() -> Tested:
    """Raises SandboxError when a part of the box is not installed."""
    # what all boxes share, made before they start at the same time
    bubblewrap.executable("bwrap")
    bubblewrap.crossing()
    system_calls.program()
    with socket.create_server(("127.0.0.1", 0)) as listener, secret() as file:
        given = {
            "secrets": [file],
            "port": listener.getsockname()[1],
            "forks": MOST_FORKS,
            "touch": TOUCHED,
        }
        probe = launch(
            ("python", "-I", "probe.py"),
            files={"probe.py": PROBE.read_bytes()},
            stdin=json.dumps(given).encode(),
            limits=PROBED,
        )
        stubborn, talkative = (
            launch(("python", "-I", "-S", "main.py"), files={"main.py": text}, limits=limits)
            for text, limits in ((STUBBORN, DEADLINE), (TALKATIVE, TALK))
        )
        outcome = probe.wait()
        outcomes = {"deadline": stubborn.wait(), "output": talkative.wait()}
        called = was_called(listener)
    if outcome.ending != "exit" or outcome.code != 0:
        return Tested(cause=reason(outcome))
    layers = proven(json.loads(outcome.stdout), outcomes, called)
    missing = [name for name, holds in layers.items() if not holds and name not in OPTIONAL]
    if missing:
        return Tested(cause=f"a program got past {', '.join(missing)} in the self-test")
    return Tested(tuple(name for name, holds in layers.items() if holds))


@contextmanager
def secret() -> Iterator[str]:
    """The path of a file that any user of the host may read."""
    with tempfile.NamedTemporaryFile(prefix="opd-secret-") as file:
        os.chmod(file.name, 0o644)
        yield file.name


def was_called(listener: socket.socket) -> bool:
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def reason(outcome: Outcome) -> str:
    """Why the probe gave no answer."""
    said = outcome.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if said else f"the first program ended with {outcome.ending} {outcome.code}"


def proven(found: Found, outcomes: Mapping[str, Outcome], was_reached: bool) -> dict[str, bool]:
    """Every layer and whether it held."""
    mine = {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in SEPARATE}
    shared = [name for name in SEPARATE if found["namespaces"][name] == mine[name]]
    names = found["environment"]
    held = found["identities"]
    return {
        "namespaces": not shared and not was_reached and bool(found["connect"]),
        "privileges": held["uid"] == bubblewrap.NOBODY
        and not (held["CapEff"] or held["CapPrm"] or held["CapBnd"])
        and held["NoNewPrivs"] == 1,
        "system calls": held["Seccomp"] == 2
        and (found["connect"], found["memory file"]) == ("EPERM", "EPERM"),
        "files": not found["secrets"] and set(found["writable"]) <= WRITABLE,
        "space": all(0 < size <= PROBED.disk for size in found["fill"].values()),
        "limits": found["limits"] == expected_limits() and found["large"] == "ENOMEM",
        "processes": 0 < found["forks"] <= PROBED.processes,
        "environment": set(names) <= set(bubblewrap.ENVIRONMENT) | SHELL_VARIABLES,
        "descriptors": found["descriptors"] == [0, 1, 2],
        "deadline": outcomes["deadline"].ending == "timeout",
        "output": outcomes["output"].ending == "output",
        "group": found["killed"] > 0,
    }


def expected_limits() -> dict[str, int]:
    return {
        "AS": PROBED.memory,
        "CPU": ceil(PROBED.seconds) + 2,
        "FSIZE": PROBED.disk,
        "NOFILE": 64,
        "NPROC": PROBED.processes + 1,
        "CORE": 0,
    }
