"""Starts a program in a box and watches it from outside until nothing of it is left."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import selectors
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from subprocess import TimeoutExpired
from types import MappingProxyType

from opd.errors import SandboxError
from rewards.sandbox.cgroup import Group, groups
from rewards.sandbox.limits import Ending, Limits, Outcome
from rewards.sandbox.spawn import HIGH, Job, Spawned, Tier, spawn

logger = logging.getLogger(__name__)

STARTING_SECONDS = 30.0
"""Until the program itself has started. More is a fault of the machine, not of the program."""
ENDING_SECONDS = 10.0
"""Until the kernel has removed all that we killed."""
CHUNK = 1 << 16
CHILD = re.compile(rb'"child-pid": (\d+)')
NO_FILES: Mapping[str, bytes] = MappingProxyType({})
NO_DESCRIPTORS: Mapping[int, int] = MappingProxyType({})


def launch(
    command: Sequence[str],
    *,
    files: Mapping[str, bytes] = NO_FILES,
    stdin: bytes = b"",
    limits: Limits | None = None,
    descriptors: Mapping[int, int] = NO_DESCRIPTORS,
    tier: Tier = "bwrap",
) -> Running:
    """What `rewards.sandbox.start` does, without asking whether the box holds."""
    if not all(3 <= inside < HIGH for inside in descriptors):
        raise ValueError(f"descriptors inside are {sorted(descriptors)}; give 3 to {HIGH - 1}")
    for name in files:
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"the file name {name!r} leads out of the box; give one inside")
    with ExitStack() as belongings:
        moves: dict[int, int] = {}
        for inside, ours in descriptors.items():
            moves[inside] = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, HIGH)
            belongings.callback(os.close, moves[inside])
        job = Job(tuple(command), files, stdin, limits or Limits(), moves, tier)
        return Running(job, belongings.pop_all())


class Running:
    """A started program. A thread of its own watches it, so that it ends whoever waits."""

    def __init__(self, job: Job, copies: ExitStack) -> None:
        """`copies` are the descriptors of the job, closed once the program has them."""
        self._job, self._copies = job, copies
        self._lock = threading.Lock()
        self._spawned: Spawned | None = None
        self._init: int | None = None
        self._is_killed = False
        self._texts = {"stdout": bytearray(), "stderr": bytearray()}
        self._began = time.monotonic()
        self._started: float | None = None
        self._told = b""
        self._outcome: Outcome | None = None
        self._ended = threading.Event()
        # bwrap dies with the thread that started it, so that it has to be one that stays.
        threading.Thread(target=self._live, name="sandbox", daemon=True).start()

    def wait(self) -> Outcome:
        """How it ended, at most about `Limits.seconds` after the program's own start."""
        self._ended.wait(STARTING_SECONDS + self._job.limits.seconds + 2 * ENDING_SECONDS)
        if self._outcome is None:
            return self._concluded("fault")
        return self._outcome

    def kill(self) -> None:
        """End it now, with all that it started; it ends by SIGKILL."""
        self._is_killed = True
        self._kill()

    def _kill(self) -> None:
        """The first process of a box, whose parent then reaps it and ends; when that is not known,
        the parent, with which it dies."""
        with self._lock, suppress(ProcessLookupError):
            if self._init is not None:
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
            elif self._spawned is not None and self._spawned.process.returncode is None:
                os.killpg(self._spawned.process.pid, self._spawned.fatal)

    def _live(self) -> None:
        outcome = None
        try:
            with ExitStack() as belongings, grouped(self._job) as group:
                with self._copies:
                    spawned = spawn(self._job, group, belongings)
                outcome = self._watched(spawned, belongings)
        except (OSError, SandboxError, TimeoutExpired) as error:
            self._texts["stderr"] += str(error).encode()
            logger.warning("a box failed: %s", error)
        finally:
            self._outcome = outcome or self._concluded("fault")
            self._ended.set()

    def _watched(self, spawned: Spawned, belongings: ExitStack) -> Outcome:
        with self._lock:
            self._spawned = spawned
        if self._is_killed:
            self._kill()
        try:
            ending = self._ending(spawned)
        finally:
            self._reap(spawned, belongings)
        for name in self._texts:
            self._read(name, spawned.readers[name])
        return self._concluded(self._exited(spawned) if ending is None else ending)

    def _ending(self, spawned: Spawned) -> Ending | None:
        """Watch until it is over; None when the process ended by itself."""
        process = os.pidfd_open(spawned.process.pid)
        with ExitStack() as stack:
            stack.callback(os.close, process)
            watch = stack.enter_context(selectors.DefaultSelector())
            watch.register(process, selectors.EVENT_READ, "process")
            for name, reader in spawned.readers.items():
                watch.register(reader, selectors.EVENT_READ, name)
            while (left := self._latest() - time.monotonic()) > 0:
                for key, _ in watch.select(left):
                    if key.data == "process":
                        return None
                    if not self._read(key.data, key.fd):
                        watch.unregister(key.fd)
                    if self._is_over():
                        return "output"
        return "fault" if self._started is None else "timeout"

    def _latest(self) -> float:
        if self._started is None:
            return self._began + STARTING_SECONDS
        return self._started + self._job.limits.seconds

    def _is_over(self) -> bool:
        return any(len(text) > self._job.limits.output for text in self._texts.values())

    def _read(self, name: str, reader: int) -> bool:
        """Take what there is, unless it is too much; False at the end."""
        with suppress(BlockingIOError):
            while not self._is_over():
                chunk = os.read(reader, CHUNK)
                if not chunk:
                    return False
                self._take(name, chunk)
        return True

    def _take(self, name: str, chunk: bytes) -> None:
        if name == "ready":
            self._started = time.monotonic()
        elif name == "info":
            self._told += chunk
            self._find_init()
        else:
            self._texts[name] += chunk

    def _find_init(self) -> None:
        """Hold the first process of the box, whose end is the end of all in it."""
        found = CHILD.search(self._told)
        if found is None or self._init is not None or self._spawned is None:
            return
        with suppress(OSError):
            init = os.pidfd_open(int(found[1]))
            fields = Path("/proc", found[1].decode(), "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == self._spawned.process.pid:
                self._init = init
            else:
                os.close(init)

    def _reap(self, spawned: Spawned, belongings: ExitStack) -> None:
        """Kill what is left and wait until it is gone."""
        if self._init is None and "info" in spawned.readers:
            self._read("info", spawned.readers["info"])
        self._kill()
        try:
            spawned.process.wait(ENDING_SECONDS)
        except TimeoutExpired:
            logger.warning("a box did not end when it was killed; killing its parent")
            spawned.process.kill()
            spawned.process.wait(ENDING_SECONDS)
        if self._init is not None:
            belongings.callback(os.close, self._init)
            with selectors.DefaultSelector() as ended:
                ended.register(self._init, selectors.EVENT_READ)
                ended.select(ENDING_SECONDS)
            with self._lock:
                self._init = None

    def _exited(self, spawned: Spawned) -> Ending:
        """What the end of the process says of the program."""
        self._read("ready", spawned.readers["ready"])
        status = spawned.process.returncode
        if self._is_killed:
            return "signal"
        if self._started is None or (self._job.is_contained and status < 0):
            return "fault"
        if self._is_over():
            return "output"
        return "signal" if status < 0 or status > 128 else "exit"

    def _concluded(self, ending: Ending) -> Outcome:
        status = self._spawned.process.returncode if self._spawned is not None else None
        code = signal.SIGKILL if status is None or ending != "exit" else status
        if ending == "signal" and status is not None and not self._is_killed:
            code = -status if status < 0 else status - 128
        stdout, stderr = (bytes(text[: self._job.limits.output]) for text in self._texts.values())
        since = self._began if self._started is None else self._started
        return Outcome(ending, int(code), stdout, stderr, time.monotonic() - since)


@contextmanager
def grouped(job: Job) -> Iterator[Group | None]:
    """A control group for the job, where there is one."""
    ours = groups() if job.is_contained else None
    if ours is None:
        yield None
        return
    group = ours.take(job.limits)
    try:
        yield group
    finally:
        ours.give_back(group)
