"""Worker processes that compare answers, each killable, one request at a time.

Usable from any thread, from a forked or spawned process and from an event loop (where it blocks;
`asyncio.to_thread` is there for that). Linux only, as are the process-death signals.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import cast

from opd.errors import OpdError

SCRIPT = Path(__file__).with_name("worker.py")
MEMORY = 1 << 30
"""Bytes of address space that a worker may have."""
MOST_WORKERS = 8
START_SECONDS = 120.0
FORK_SECONDS = 10.0
CHUNK = 1 << 16

Reply = dict[str, object]


class WorkerFaultError(Exception):
    """No answer came: the deadline passed, or the worker died."""


class Connection:
    """Lines over a socket, each waited for until a moment of the monotonic clock."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self._rest = b""

    def send(self, line: str, ends: float) -> None:
        self.end.settimeout(max(ends - time.monotonic(), 0.001))
        self.end.sendall(f"{line}\n".encode())

    def receive(self, ends: float) -> str:
        """The next line. Raises OSError when it does not come in time, or never will."""
        while b"\n" not in self._rest:
            self.end.settimeout(max(ends - time.monotonic(), 0.001))
            chunk = self.end.recv(CHUNK)
            if not chunk:
                raise ConnectionResetError("the other end is closed")
            self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()

    def close(self) -> None:
        self.end.close()


def plain_environment() -> dict[str, str]:
    """Ours, without the libraries that it would load into every process (vLLM asks for some)."""
    own = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return {**own, "OMP_NUM_THREADS": "1"}


class Nursery:
    """The process that workers are forked from, and that alone may kill them."""

    def __init__(self) -> None:
        """Raises OpdError when it does not come to life."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(SCRIPT), str(theirs.fileno()), str(MEMORY)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=plain_environment(),
            )
        self.control = Connection(ours)
        self._lock = threading.Lock()
        self._await_first_words()

    def _await_first_words(self) -> None:
        assert self.process.stderr, "it is a pipe"
        try:
            self.control.receive(time.monotonic() + START_SECONDS)
        except OSError:
            self.process.kill()
            words = self.process.stderr.read().decode(errors="replace").strip()
            self.close()
            cause = words.splitlines()[-1] if words else "they say nothing"
            raise OpdError(
                f"rewards.math: its workers do not start ({cause}); "
                "install 'math-verify[antlr4_13_2]==0.9.0'"
            ) from None
        finally:
            self.process.stderr.close()

    def fork(self) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            ends = time.monotonic() + FORK_SECONDS
            self.control.end.settimeout(FORK_SECONDS)
            socket.send_fds(self.control.end, [b"fork"], [theirs.fileno()])
            return Worker(self, Connection(ours), int(self.control.receive(ends)))

    def kill(self, worker: Worker) -> None:
        with self._lock:
            ends = time.monotonic() + FORK_SECONDS
            self.control.end.settimeout(FORK_SECONDS)
            self.control.end.sendall(str(worker.process_id).encode())
            self.control.receive(ends)

    def close(self) -> None:
        """Let go of it; it leaves when it sees the closed end, and its workers leave with it."""
        self.control.close()
        try:
            self.process.wait(FORK_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Worker:
    """One process, and the line to it."""

    def __init__(self, nursery: Nursery, connection: Connection, process_id: int) -> None:
        self.nursery = nursery
        self.connection = connection
        self.process_id = process_id

    def ask(self, request: Reply, ends: float) -> Reply:
        self.connection.send(json.dumps(request), ends)
        return cast("Reply", json.loads(self.connection.receive(ends)))


class Pool:
    """As many workers as there are processors, started when they are first needed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._nursery: Nursery | None = None
        self._is_closed = False

    def ask(self, request: Reply, deadline: float) -> Reply:
        """What a worker answers within `deadline` seconds, which count from when one is free.

        Raises WorkerFaultError when none does; the worker is killed then, and another takes its
        place. Where one is found dead that has worked before, the next is asked.
        """
        with self._free:
            worker, is_fresh = self._worker()
            ends = time.monotonic() + deadline
            while True:
                try:
                    reply = worker.ask(request, ends)
                except TimeoutError:
                    self._discard(worker)
                    raise WorkerFaultError(f"no answer within {deadline:g} s") from None
                except (OSError, ValueError):
                    self._discard(worker)
                    if is_fresh:
                        raise WorkerFaultError("the worker died") from None
                    worker, is_fresh = self._worker()
                except BaseException:
                    self._discard(worker)
                    raise
                else:
                    with self._lock:
                        self._idle.append(worker)
                    return reply

    def _worker(self) -> tuple[Worker, bool]:
        """A worker, and whether it has done nothing yet."""
        with self._lock:
            if self._idle:
                return self._idle.pop(), False
            for is_second_try in (False, True):
                if self._is_closed:
                    raise WorkerFaultError("the interpreter is going down")
                self._nursery = self._nursery or Nursery()
                try:
                    return self._nursery.fork(), True
                except (OSError, ValueError):
                    self._nursery.close()
                    self._nursery = None
                    if is_second_try:
                        raise WorkerFaultError("no worker can be started") from None
        raise AssertionError("the second try returns or raises")

    def _discard(self, worker: Worker) -> None:
        worker.connection.close()
        with self._lock:
            nursery = worker.nursery
            if nursery is not self._nursery:
                return  # It died with the nursery that it came from.
            try:
                nursery.kill(worker)
            except (OSError, ValueError):
                # Its workers died with it; the next request starts another.
                nursery.close()
                self._nursery = None

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            while self._idle:
                self._idle.pop().connection.close()
            if self._nursery is not None:
                self._nursery.close()
                self._nursery = None

    def abandon(self) -> None:
        """After a fork: these processes are the parent's, and its to end. What would keep their
        lines open here is closed."""
        with suppress(OSError):
            for worker in self._idle:
                worker.connection.close()
            if self._nursery is not None:
                self._nursery.control.close()


def ask(request: Reply, deadline: float) -> Reply:
    """What a worker of this process answers; see Pool.ask."""
    return _pool.ask(request, deadline)


def _start_anew() -> None:
    global _pool
    _pool.abandon()
    # Kept, so that no destructor waits for a process that is no child of this one.
    _inherited.append(_pool)
    _pool = Pool(SIZE)


SIZE = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
_pool = Pool(SIZE)
_inherited: list[Pool] = []
atexit.register(lambda: _pool.close())
os.register_at_fork(after_in_child=_start_anew)
