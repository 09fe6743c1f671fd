"""Runs inside a box and tries what it should not be able to do; prints what it found as JSON.

Given on standard input: `secrets`, files of the host; `port`, a listener of the host; `forks`;
`touch`, bytes that a few children use at the same time.
"""

from __future__ import annotations

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
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    names = ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")
    return {"uid": os.getuid(), **{name: int(fields[name], 16) for name in names}}


def connect(port):
    with socket.socket() as caller:
        caller.settimeout(0.2)
        caller.connect(("127.0.0.1", port))


def readable(secrets):
    places = [place for name in secrets for place in (name, f"/proc/1/root{name}")]
    return [place for place in places if os.path.exists(place)]


def writable_mounts():
    with open("/proc/self/mountinfo") as file:
        fields = [line.split() for line in file]
    return sorted(field[4] for field in fields if "ro" not in field[5].split(","))


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
    found = {
        "descriptors": sorted(map(int, os.listdir("/proc/self/fd")))[:-1],
        "environment": sorted(os.environ),
        "namespaces": {
            name: os.stat(f"/proc/self/ns/{name}").st_ino for name in os.listdir("/proc/self/ns")
        },
        "identities": identities(),
        "secrets": readable(given["secrets"]),
        "writable": writable_mounts(),
        "connect": code_of(connect, given["port"]),
        "memory file": code_of(os.memfd_create, "held"),
        "limits": {
            name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1] for name in RESOURCES
        },
        "large": code_of(mmap.mmap, -1, 1 << 29),
        "fill": {folder: fill(folder) for folder in ("/tmp", "/dev/shm")},
        "forks": forks(given["forks"]),
        "killed": killed_for_memory(given["touch"]),
    }
    json.dump(found, sys.stdout)


main()
