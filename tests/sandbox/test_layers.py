"""Take a layer away: the self-test misses it, or a program gets further."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

from rewards.sandbox import Limits, bubblewrap, running, spawn, tiers
from rewards.sandbox.running import Running, launch
from rewards.sandbox.tiers import tried
from tests.sandbox.programs import NUMBERS, PRELUDE, PROGRAMS

Remove = Callable[[pytest.MonkeyPatch], None]

REQUIRED = (
    *("namespaces", "privileges", "system calls", "files", "space", "limits", "processes"),
    *("environment", "descriptors", "deadline", "output"),
)
SEPARATE = ("net", "ipc", "uts", "cgroup")
"""Namespaces that bubblewrap would start without: not those of users and of processes."""


def test_all_layers_hold_here() -> None:
    assert tried().layers in (REQUIRED, (*REQUIRED, "group"))


def patched(target: object, name: str, value: object) -> Remove:
    return lambda patch: patch.setattr(target, name, value)


def without_line(line: str) -> Remove:
    """A box whose shim lacks one line."""
    assert spawn.SHIM.count(line) == 1
    end = "|| :" if line.startswith("||") else ":"
    return patched(spawn, "SHIM", spawn.SHIM.replace(line, end))


def spawned_with(**changes: object) -> Remove:
    """Boxes start with other arguments to Popen."""
    popen = subprocess.Popen

    def remove(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(subprocess, "Popen", lambda *args, **given: popen(*args, **given | changes))

    return remove


def leaking(patch: pytest.MonkeyPatch) -> None:
    """A descriptor of ours that goes into every box."""
    pipe = os.pipe()
    popen = subprocess.Popen
    patch.setattr(
        subprocess,
        "Popen",
        lambda *args, **given: popen(
            *args, **given | {"pass_fds": [*given.get("pass_fds", ()), pipe[0]]}
        ),
    )


def sharing(name: str) -> Remove:
    """Boxes in the host's own namespace of one kind."""
    kept = [f"--unshare-{other}" for other in ("pid", *SEPARATE) if other != name]
    rest = bubblewrap.NAMESPACES[1:-2]
    return patched(bubblewrap, "NAMESPACES", (*kept, *rest))


def unhurried(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Running, "_latest", lambda self: self._began + 20)
    patch.setattr(tiers, "STUBBORN", b"import time\ntime.sleep(0.4)\n")


def patient(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Running, "_is_over", lambda self: False)
    patch.setattr(tiers, "TALK", Limits(seconds=0.3, output=1 << 12))


UNSIZED = ("--tmpfs", "/tmp", "--tmpfs", "/dev/shm")
WITH_HOST = (*bubblewrap.scratch(1048576), *("--bind", "/var/tmp", "/var/tmp"))
PROVEN: dict[str, tuple[str, Remove]] = {
    **{f"namespace {name}": ("namespaces", sharing(name)) for name in SEPARATE},
    "root outside": (
        "processes",
        patched(
            bubblewrap,
            "crossing",
            lambda: ([], dict(zip(*[bubblewrap.interpreter().places] * 2, strict=True))),
        ),
    ),
    "seccomp": ("system calls", patched(bubblewrap, "filtered", lambda seccomp: ())),
    "read-only root": ("files", patched(bubblewrap, "READ_ONLY", ())),
    "no host folders": ("files", patched(bubblewrap, "scratch", lambda size: WITH_HOST)),
    "sizes": ("space", patched(bubblewrap, "scratch", lambda size: UNSIZED)),
    "core": ("limits", without_line("ulimit -c 0")),
    "descriptor count": ("limits", without_line("ulimit -n 64")),
    "file size": ("limits", without_line('ulimit -f "$file"')),
    "process count": ("processes", without_line('|| ulimit -u "$processes"')),
    "seconds": ("limits", without_line('ulimit -H -t "$((seconds + 1))"')),
    "memory": ("limits", without_line('ulimit -v "$memory"')),
    "environment": ("environment", spawned_with(env=None)),
    "leak": ("descriptors", leaking),
    "ready left open": ("descriptors", without_line("exec {ready}>&-")),
    "deadline": ("deadline", unhurried),
    "output": ("output", patient),
}


@pytest.mark.parametrize("name", PROVEN)
def test_the_self_test_misses_a_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, remove = PROVEN[name]
    if name == "root outside" and os.geteuid() != 0:
        pytest.skip("only root has a user to drop")
    remove(monkeypatch)
    tested = tried()
    assert not tested.layers
    assert tested.cause.startswith("a program got past ") and layer in tested.cause, tested.cause


def test_a_group_that_is_not_there_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "groups", lambda: None)
    assert tried().layers == REQUIRED


ATTEMPTED: dict[str, Remove] = {
    "writes to its standard input": patched(spawn, "sealed", lambda descriptor: descriptor),
    "spares itself when memory is short": without_line("echo 1000 >/proc/self/oom_score_adj"),
    "segments without a process": patched(bubblewrap, "filtered", lambda seccomp: ()),
    "files in memory": patched(bubblewrap, "filtered", lambda seccomp: ()),
    "a new user namespace": patched(bubblewrap, "filtered", lambda seccomp: ()),
    "types into a terminal": patched(bubblewrap, "filtered", lambda seccomp: ()),
    "overwrites programs": patched(bubblewrap, "READ_ONLY", ()),
    "a file of 1 TiB with nothing in it": without_line('ulimit -f "$file"'),
    "writes a byte more": patched(Running, "_is_over", lambda self: False),
}


@pytest.mark.parametrize("name", ATTEMPTED)
def test_a_program_gets_further_without_a_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ATTEMPTED[name](monkeypatch)
    program = PROGRAMS[name]
    source = PRELUDE.format(given=("/tmp/no", __file__, 1, b"\0no", 1, "opd"), numbers=NUMBERS)
    files = {"main.py": (source + program.source).encode()}
    outcome = launch(("python", "-I", "main.py"), files=files, limits=program.limits).wait()
    assert outcome.ending != "fault", outcome
    assert not program.check(outcome)
