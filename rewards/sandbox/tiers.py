"""How far programs can be kept away from this machine, proven before the first of them runs."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, Literal

from opd.errors import SandboxError
from rewards.sandbox import bubblewrap, landlock, system_calls
from rewards.sandbox.limits import Limits, Outcome
from rewards.sandbox.running import launch
from rewards.sandbox.spawn import Tier

logger = logging.getLogger(__name__)

Otherwise = Literal["refuse", "external", "unsandboxed"]
"""What may stand in where bubblewrap does not work: Landlock alone; a boundary around this whole
machine that the user vouches for; where Landlock does not work either, nothing at all, which the
environment has to accept as well."""

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
DAEMON = b"""\
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
    os._exit(0)
os.wait()
time.sleep(0.1)
"""
PROBED = Limits(memory=128 << 20, disk=1 << 20)
DEADLINE = Limits(seconds=0.1)
TALK = Limits(seconds=5, output=1 << 12)
MOST_FORKS = 100
TOUCHED = 70 << 20
"""Bytes of each of three children: more together than one box may have."""
SEPARATE = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
PLACES = ("/tmp", "/var/tmp", "/dev/shm", ".", "/")
"""Where programs like to write."""
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
    """What programs run in here. The first call tests it, in about half a second.

    Landlock stands in for bubblewrap by itself, with a warning. Raises SandboxError where neither
    holds and nothing else may.
    """
    with lock:
        tested = self_test()
    if not tested.cause:
        layers = ", ".join(tested.layers)
        return Isolation("bwrap", tested.layers, f"bubblewrap, proven: {layers}")
    if otherwise == "external":
        said = "the user declares a boundary around this machine; ours is only a deadline and caps"
        return Isolation("external", (), said)
    with lock:
        second = second_test()
    if not second.cause:
        return Isolation("landlock", second.layers, weaker(second, tested.cause))
    cause = f"{tested.cause}; nor by Landlock: {second.cause}"
    if otherwise == "unsandboxed" and os.environ.get(ACCEPTANCE) == "yes":
        return Isolation("none", (), f"UNSANDBOXED, by the user's own choice: {cause}")
    consent = (
        f"; the setting alone is not enough to go without: {ACCEPTANCE}=yes must be set too"
        if otherwise == "unsandboxed"
        else ""
    )
    raise SandboxError(
        f"programs that a model wrote cannot be kept in a box here: {cause}; {REMEDIES}{consent}"
    )


lock = threading.Lock()
# No process is forked in the midst of a test, or the child would wait for ever.
os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


def weaker(tested: Tested, cause: str) -> str:
    """What stands in, and what it lacks."""
    capped = "of the whole box" if "group" in tested.layers else "of each process only"
    return (
        f"Landlock and seccomp, proven: {', '.join(tested.layers)}; weaker than bubblewrap: no "
        "process namespace, so that programs see numbers of processes and names of files here; "
        f"memory is capped {capped}, processes loosely, and the size of a temporary folder not at "
        f"all; bubblewrap does not hold ({cause})"
    )


@cache
def self_test() -> Tested:
    """Try to get out of a box, once a process."""
    try:
        return tried()
    except SandboxError as error:
        return Tested(cause=str(error))


@cache
def second_test() -> Tested:
    """Try to get past Landlock, once a process."""
    try:
        landlock.check()
        tested = tried("landlock")
    except (SandboxError, OSError) as error:
        return Tested(cause=str(error))
    if not tested.cause:
        logger.warning("%s", weaker(tested, self_test().cause))
    return tested


def tried(tier: Literal["bwrap", "landlock"] = "bwrap") -> Tested:
    """Raises SandboxError when a part of the box is not installed."""
    # what all boxes share, made before they start at the same time
    if tier == "bwrap":
        bubblewrap.executable("bwrap")
        bubblewrap.crossing()
    system_calls.program()
    with socket.create_server(("127.0.0.1", 0)) as listener, secret() as file, victim() as process:
        given = {
            "secrets": [file],
            "port": listener.getsockname()[1],
            "victim": process,
            "namespaces": SEPARATE,
            "places": PLACES,
            "fillable": ["/tmp", "/dev/shm"] if tier == "bwrap" else [],
            "forks": MOST_FORKS,
            "touch": TOUCHED,
        }
        probe = launch(
            ("python", "-I", "probe.py"),
            files={"probe.py": PROBE.read_bytes()},
            stdin=json.dumps(given).encode(),
            limits=PROBED,
            tier=tier,
        )
        stubborn, talkative, daemon = (
            launch(
                ("python", "-I", "-S", "main.py"),
                files={"main.py": text},
                limits=limits,
                tier=tier,
            )
            for text, limits in ((STUBBORN, DEADLINE), (TALKATIVE, TALK), (DAEMON, TALK))
        )
        outcome = probe.wait()
        outcomes = {
            "deadline": stubborn.wait(),
            "output": talkative.wait(),
            "survivors": daemon.wait(),
        }
        called = was_called(listener)
    if outcome.ending != "exit" or outcome.code != 0:
        return Tested(cause=reason(outcome))
    prove = proven if tier == "bwrap" else proven_by_landlock
    layers = prove(json.loads(outcome.stdout), outcomes, called)
    missing = [name for name, holds in layers.items() if not holds and name not in OPTIONAL]
    if missing:
        return Tested(cause=f"a program got past {', '.join(missing)} in the self-test")
    return Tested(tuple(name for name, holds in layers.items() if holds))


@contextmanager
def victim() -> Iterator[int]:
    """A process of the user that programs run as, whom they could reach by that."""
    sleep = [bubblewrap.executable("sleep"), "60"]
    with subprocess.Popen(sleep, user=landlock.user() or None, cwd="/") as process:
        try:
            yield process.pid
        finally:
            with suppress(ProcessLookupError):
                process.kill()


@contextmanager
def secret() -> Iterator[str]:
    """The path of a file that belongs to the user that programs run as."""
    with suppress(FileNotFoundError), tempfile.NamedTemporaryFile(prefix="opd-secret-") as file:
        os.chmod(file.name, 0o666)
        if landlock.user():
            os.chown(file.name, landlock.user(), landlock.user())
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
    held = found["identities"]
    mounts = found["mounts"]
    return {
        "namespaces": not shared and not was_reached and bool(found["connect"]),
        "privileges": held["uid"] == bubblewrap.NOBODY
        and not (held["CapEff"] or held["CapPrm"] or held["CapBnd"])
        and held["NoNewPrivs"] == 1,
        "system calls": is_filtered(found),
        "files": not found["secrets"] and mounts is not None and set(mounts) <= WRITABLE,
        "space": all(0 < size <= PROBED.disk for size in found["fill"].values()),
        "limits": found["limits"] == expected_limits() and found["large"] == "ENOMEM",
        "processes": 0 < found["forks"] <= PROBED.processes,
        **proven_everywhere(found, outcomes),
    }


def proven_by_landlock(
    found: Found, outcomes: Mapping[str, Outcome], was_reached: bool
) -> dict[str, bool]:
    """Those that a program can have without namespaces."""
    held = found["identities"]
    expected = {**expected_limits(), "NPROC": found["limits"]["NPROC"]}
    return {
        "network": not was_reached and bool(found["connect"]),
        "privileges": held["uid"] != 0
        and not (held["CapEff"] or held["CapPrm"])
        and held["NoNewPrivs"] == 1,
        "system calls": is_filtered(found),
        "files": not found["changed"] and found["writable"] == [found["scratch"]],
        "other processes": not found["reached"],
        "limits": found["limits"] == expected and found["large"] == "ENOMEM",
        "survivors": is_gone(outcomes["survivors"]),
        **proven_everywhere(found, outcomes),
    }


def proven_everywhere(found: Found, outcomes: Mapping[str, Outcome]) -> dict[str, bool]:
    return {
        "environment": set(found["environment"]) <= set(bubblewrap.ENVIRONMENT) | SHELL_VARIABLES,
        "descriptors": found["descriptors"] == [0, 1, 2],
        "deadline": outcomes["deadline"].ending == "timeout",
        "output": outcomes["output"].ending == "output",
        "group": found["killed"] > 0,
    }


def is_filtered(found: Found) -> bool:
    denied = (found["connect"], found["memory file"]) == ("EPERM", "EPERM")
    return found["identities"]["Seccomp"] == 2 and denied


def is_gone(outcome: Outcome) -> bool:
    """Whether the daemon, whose number the program printed, was ended with it."""
    number = outcome.stdout.decode().strip()
    return number.isdigit() and not Path("/proc", number).exists()


def expected_limits() -> dict[str, int]:
    return {
        "AS": PROBED.memory,
        "CPU": ceil(PROBED.seconds) + 2,
        "FSIZE": PROBED.disk,
        "NOFILE": 64,
        "NPROC": PROBED.processes + 1,
        "CORE": 0,
    }
