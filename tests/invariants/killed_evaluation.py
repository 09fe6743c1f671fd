"""Evaluates once in peace and once through many deaths; prints how each attempt ended.

    python killed_evaluation.py SUITE PEACEFUL KILLED SEED

Deaths are real SIGKILLs of forked processes: at chosen moments of writing, or after a chosen time.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from random import Random
from typing import NoReturn

import torch

from opd.evaluate import measure

MODEL = "data/tiny"
LATEST = 4
"""The write at which a death by time comes if its time has not come yet."""


def evaluate(suite: str, to: str) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        measure(MODEL, None, suite=suite, overrides=(), files=None, to=Path(to))


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nothing outlives SIGKILL")


def die_at_write(number: int, moment: str, cut: int) -> None:
    """At the `number`-th write that is forced to disk: before it, after it, or with all but its
    last `cut` bytes on disk."""
    sync, left = os.fsync, [number]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0]:
            return sync(descriptor)
        size = os.fstat(descriptor).st_size
        if moment == "torn":
            os.truncate(descriptor, max(size - cut, 0))
        sync(descriptor)
        die()

    os.fsync = fsync


def die_at_replace(moment: str) -> None:
    """When a whole file takes its name: just before, or just after."""
    replace = Path.replace

    def dying(self: Path, target: Path) -> Path:
        if moment == "after":
            replace(self, target)
        die()

    Path.replace = dying  # type: ignore[method-assign]


def attempt(suite: str, to: str, death: tuple[str, str, int, float]) -> str:
    """How a forked process ended that met `death` on its way."""
    kind, moment, number, delay = death
    child = os.fork()
    if not child:
        if kind == "write":
            die_at_write(number, moment, cut=1 + int(delay * 300))
        elif kind == "replace":
            die_at_replace(moment)
        elif kind == "time":  # a fast machine must not finish before the last death
            die_at_write(LATEST, "after", cut=0)
        try:
            evaluate(suite, to)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if kind == "time":
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)  # of one that is dead already it changes nothing
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else f"exit {os.waitstatus_to_exitcode(status)}"


def deaths(random: Random) -> list[tuple[str, str, int, float]]:
    """Two around the protocol, sixteen among the samples, two around the summary."""
    middle = [("write", ("torn", "after")[i % 2], 1 + i % 3, random.random()) for i in range(8)]
    middle += [("time", "", 0, random.uniform(0.05, 0.5)) for _ in range(8)]
    random.shuffle(middle)
    around = [("replace", moment, 1, 0.0) for moment in ("before", "after")]
    return [*around, *middle, *around]


def main(suite: str, peaceful: str, killed: str, seed: str) -> None:
    torch.set_num_threads(1)
    evaluate(suite, peaceful)
    for death in [*deaths(Random(int(seed))), ("none", "", 0, 0.0)]:
        print(death[0], attempt(suite, killed, death), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
