"""Runs inside a box and tries what it should not be able to do; prints what it found as JSON.

Given on standard input: `secrets`, files of the host; `port`, a listener of the host; `victim`, a
process of the host; `namespaces`, their names; `places`, folders to write to; `fillable`, folders
to fill; `forks`; `touch`, bytes that a few children use at the same time.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import socket
import sys
import time

CHILDREN = 3
RESOURCES = ("AS", "CPU", "FSIZE", "NOFILE", "NPROC", "CORE")


def code_of(call, *given):
    """The name of the error that a call meets, "" when it works."""
    try:
        call(*given)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "unknown")
    return ""


def identities():
    """From the kernel itself, since /proc may be closed."""
    libc = ctypes.CDLL(None)
    capabilities = (ctypes.c_uint32 * 6)()
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert libc.capget(header, capabilities) == 0, "the kernel tells every process its own"
    words = list(capabilities)
    return {
        "uid": os.getuid(),
        "CapEff": any(words[0::3]),
        "CapPrm": any(words[1::3]),
        "CapBnd": any(libc.prctl(23, number) == 1 for number in range(64)),
        "NoNewPrivs": libc.prctl(39, 0, 0, 0, 0),
        "Seccomp": libc.prctl(21, 0, 0, 0, 0),
    }


def is_open(number):
    return not code_of(os.fstat, number)


def connect(port):
    with socket.socket() as caller:
        caller.settimeout(0.2)
        caller.connect(("127.0.0.1", port))


def ways_to(secrets):
    return [place for name in secrets for place in (name, f"/proc/1/root{name}")]


def changed(secrets):
    """What a program gets done to files of the host."""
    calls = {
        "read": lambda name: open(name, "rb").close(),
        "write": lambda name: open(name, "r+b").close(),
        "cut": lambda name: os.truncate(name, 0),
        "mode": lambda name: os.chmod(name, 0o666),
        "time": os.utime,
        "name": lambda name: os.rename(name, name + "-moved"),
        "remove": os.unlink,
    }
    tries = [(done, place) for place in ways_to(secrets) for done in calls]
    return [done for done, place in tries if not code_of(calls[done], place)]


def reached(victim):
    """What a program gets done to a process of its user outside."""
    calls = {
        "signal": lambda: os.kill(victim, 0),
        "limit": lambda: resource.prlimit(victim, resource.RLIMIT_CORE),
        "cores": lambda: os.sched_setaffinity(victim, os.sched_getaffinity(0)),
        "precedence": lambda: os.setpriority(os.PRIO_PROCESS, victim, 19),
        "memory": lambda: open(f"/proc/{victim}/maps").close(),
    }
    return [done for done, call in calls.items() if not code_of(call)]


def writable_mounts():
    """None where they are not shown."""
    try:
        with open("/proc/self/mountinfo") as file:
            fields = [line.split() for line in file]
    except PermissionError:
        return None
    return sorted(field[4] for field in fields if "ro" not in field[5].split(","))


def writable(places):
    """Folders in which a file can be made."""
    made = []
    for place in places:
        name = f"{place}/opd-probe-{os.getpid()}"
        if not code_of(lambda name=name: open(name, "xb").close()):
            os.unlink(name)
            made.append(place)
    return made


def fill(folder):
    """Bytes that fit into the files of a folder, at most 48 MiB, none of which is large."""
    names = [f"{folder}/filler-{number}" for number in range(64)]
    written = 0
    try:
        for name in names:
            with open(name, "wb", buffering=0) as file:
                written += file.write(bytes(768 << 10))
    except OSError:
        pass
    for name in filter(os.path.exists, names):
        os.unlink(name)
    return written


def forks(most):
    """How many children can live at a time."""
    children = []
    try:
        for _ in range(most):
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except OSError:
        pass
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return len(children)


def killed_for_memory(size):
    """How many of a few children do not survive using `size` bytes each at the same time."""
    children = []
    for _ in range(CHILDREN):
        child = os.fork()
        if child == 0:
            held = b"x" * size
            time.sleep(0.1)
            os._exit(len(held) != size)
        children.append(child)
    return sum(os.WIFSIGNALED(os.waitpid(child, 0)[1]) for child in children)


def main():
    given = json.load(sys.stdin)
    scratch = os.environ.get("TMPDIR", "/tmp")
    found = {
        "descriptors": list(filter(is_open, range(1 << 12))),
        "environment": sorted(os.environ),
        "namespaces": {
            name: os.stat(f"/proc/self/ns/{name}").st_ino for name in given["namespaces"]
        },
        "identities": identities(),
        "secrets": list(filter(os.path.exists, ways_to(given["secrets"]))),
        "changed": changed(given["secrets"]),
        "reached": reached(given["victim"]),
        "mounts": writable_mounts(),
        "writable": writable([*given["places"], scratch]),
        "scratch": scratch,
        "connect": code_of(connect, given["port"]),
        "memory file": code_of(os.memfd_create, "held"),
        "limits": {
            name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1] for name in RESOURCES
        },
        "large": code_of(mmap.mmap, -1, 1 << 29),
        "fill": {folder: fill(folder) for folder in given["fillable"]},
        "forks": forks(given["forks"]),
        "killed": killed_for_memory(given["touch"]),
    }
    json.dump(found, sys.stdout)


main()
