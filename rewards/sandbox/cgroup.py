"""Control groups: the memory and the processes of a whole box, where this user may set them."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from threading import Lock

from rewards.sandbox.limits import Limits

ROOT = Path("/sys/fs/cgroup")
PREFIX = "opd-box-"
OVERHEAD_PROCESSES = 8
"""Of the box itself, besides those of the program."""
OVERHEAD_MEMORY = 32 << 20
EMPTYING_SECONDS = 0.5


@dataclass(frozen=True)
class Group:
    """One box's folders: one in version 2, one a controller in version 1."""

    folders: tuple[Path, ...]

    @property
    def entries(self) -> list[str]:
        """Where a process of one thread writes 0 to come in.

        A thread that moves itself need not wait until no process forks: some 10 ms, which version 2
        does not spare us.
        """
        name = "cgroup.procs" if len(self.folders) == 1 else "tasks"
        return [str(folder / name) for folder in self.folders]

    def limit(self, limits: Limits) -> None:
        memory, processes = limits.memory + OVERHEAD_MEMORY, limits.processes + OVERHEAD_PROCESSES
        if len(self.folders) == 1:
            wanted = {"memory.max": memory, "memory.swap.max": 0, "pids.max": processes}
            for name, value in wanted.items():
                set_value(self.folders[0] / name, value, optional="swap" in name)
            return
        in_memory, in_pids = self.folders
        set_value(in_pids / "pids.max", processes)
        # Memory alone may never be above memory with swap, so it cannot be raised first.
        set_value(in_memory / "memory.memsw.limit_in_bytes", -1, optional=True)
        set_value(in_memory / "memory.limit_in_bytes", memory)
        set_value(in_memory / "memory.memsw.limit_in_bytes", memory, optional=True)

    def is_empty(self) -> bool:
        """Whether every process is gone, also from its parent's list of ended children."""
        return int((self.folders[-1] / "pids.current").read_text()) == 0

    def remove(self) -> None:
        for folder in self.folders:
            with suppress(OSError):
                folder.rmdir()


def set_value(file: Path, value: int, *, optional: bool = False) -> None:
    if file.exists() or not optional:
        file.write_text(str(value))


@dataclass
class Groups:
    """The groups of this process; an empty one is taken again, since making them is slow."""

    parents: tuple[Path, ...]
    owner: int
    free: list[Group] = field(default_factory=list)
    made: list[Group] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)
    lock: Lock = field(default_factory=Lock)

    def take(self, limits: Limits) -> Group:
        """Raises OSError when the kernel does not let us."""
        with self.lock:
            group = self.free.pop() if self.free else self._make()
        group.limit(limits)
        return group

    def _make(self) -> Group:
        name = f"{PREFIX}{self.owner}-{next(self.numbers)}"
        group = Group(tuple(parent / name for parent in self.parents))
        for folder in group.folders:
            folder.mkdir(exist_ok=True)
        self.made.append(group)
        return group

    def give_back(self, group: Group) -> None:
        """Once its box is gone. A group that does not empty is not used again."""
        latest = time.monotonic() + EMPTYING_SECONDS
        while not group.is_empty():
            if time.monotonic() > latest:
                return
            time.sleep(0.002)
        with self.lock:
            self.free.append(group)

    def remove(self) -> None:
        """At the end of the process that made them, not of one that it forked."""
        if os.getpid() == self.owner:
            for group in self.made:
                group.remove()


def groups() -> Groups | None:
    """Those of this process; None where groups cannot be made."""
    with making:
        return made_by(os.getpid())


making = Lock()
# No process is forked while another thread makes its groups, or the child would wait for ever.
os.register_at_fork(
    before=making.acquire, after_in_parent=making.release, after_in_child=making.release
)


@cache
def made_by(process: int) -> Groups | None:
    parents = version_2() or version_1()
    if parents is None:
        return None
    found = Groups(parents, process)
    try:
        sweep(parents)
        found.give_back(found.take(Limits()))
    except OSError:
        return None
    atexit.register(found.remove)
    return found


def own_paths() -> dict[str, str]:
    """Controllers, "" for version 2, to the path of our own group."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    fields = [line.split(":", 2) for line in lines]
    return {name: path for _, names, path in fields for name in names.split(",")}


def version_1() -> tuple[Path, ...] | None:
    """Our own groups of the two controllers, which will hold those of the boxes."""
    paths = own_paths()
    if not {"memory", "pids"} <= paths.keys():
        return None
    found = tuple(ROOT / name / paths[name].lstrip("/") for name in ("memory", "pids"))
    # In a container the path may be the host's, while the mount shows our own group as its root.
    found = tuple(
        folder if folder.is_dir() else ROOT / name
        for folder, name in zip(found, ("memory", "pids"), strict=True)
    )
    return found if all(map(writable, found)) else None


def version_2() -> tuple[Path, ...] | None:
    """The group beside which boxes can stand: a group with processes, as ours, can hold none."""
    own = own_paths().get("")
    if own is None or not (ROOT / "cgroup.controllers").exists():
        return None
    parent = (ROOT / own.lstrip("/")).parent if own != "/" else ROOT
    switched_on = parent / "cgroup.subtree_control"
    if not switched_on.exists() or not {"memory", "pids"} <= set(switched_on.read_text().split()):
        return None
    return (parent,) if writable(parent) else None


def writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)


def sweep(parents: tuple[Path, ...]) -> None:
    """Remove what processes that were killed have left."""
    for folder in (folder for parent in parents for folder in parent.glob(f"{PREFIX}*")):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if not Path("/proc", owner).exists():
            with suppress(OSError):
                folder.rmdir()
