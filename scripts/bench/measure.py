"""What the benchmarks share: calls measured in processes of their own, by turns, and bars to hold.

A worker process waits between its calls, so that all that are compared take turns within seconds
of each other and whatever else the machine does falls on all of them. Seconds are CPU seconds of
the process. Peak memory is the highest resident size during a call less the size before it, heap
returned to the system first: a call's own need. Linux only.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "transformers", "accelerate", "trl", "liger-kernel")

Answer = dict[str, Any]
"""What a worker says of one turn; `skipped` holds the reason when it cannot run at all."""


@dataclass
class Cost:
    """What one call took."""

    seconds: float = 0.0
    """CPU seconds of the whole process."""
    peak_mib: float = 0.0
    """Above what the process held before."""


@contextmanager
def costing() -> Iterator[Cost]:
    """Fill the yielded Cost when the block ends."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    cost, held, started = Cost(), resident_mib("VmRSS"), time.process_time()
    yield cost
    cost.seconds = time.process_time() - started
    cost.peak_mib = resident_mib("VmHWM") - held


def resident_mib(field: str) -> float:
    """`VmRSS` or `VmHWM` of this process."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, f"/proc/self/status has no {field}"
    return int(found.group(1)) / 1024


class Turns:
    """The worker's side: asked over standard input, answered over what was standard output."""

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w")
        # Libraries print; only answers may go where the parent reads.
        os.dup2(2, 1)

    def wait(self) -> None:
        """Block until it is this worker's turn; leave the process when no turn will come."""
        if not sys.stdin.readline():
            sys.exit(0)

    def tell(self, answer: Mapping[str, object]) -> None:
        print(json.dumps(answer), file=self.answers, flush=True)

    def decline(self, reason: str) -> NoReturn:
        """Say once why this case cannot run here."""
        self.wait()
        self.tell({"skipped": reason})
        sys.exit(0)

    def serve(self, call: Callable[[], Mapping[str, object]]) -> NoReturn:
        """Answer every turn with what `call` returns."""
        while True:
            self.wait()
            self.tell(call())


class Worker:
    """The parent's side of one case: `script --case JSON` with one thread."""

    def __init__(self, script: str, case: Mapping[str, object]) -> None:
        self.case = case
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (close() closes it)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, script, "--case", json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={
                **os.environ,
                **threads,
                "PYTHONPATH": os.pathsep.join(paths),
                "TOKENIZERS_PARALLELISM": "false",
                "HF_HUB_OFFLINE": "1",
            },
        )

    def turn(self) -> Answer:
        """Let the worker make one call. Raises SystemExit with its last words when it died."""
        assert self.process.stdin and self.process.stdout, "both are pipes"
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            status = self.process.wait()
            self.errors.seek(0)
            words = "".join(self.errors.readlines()[-15:])
            raise SystemExit(f"{dict(self.case)}: its process ended with {status}:\n{words}")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout, "both are pipes"
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        self.process.wait()
        self.errors.close()


def by_turns(
    script: str,
    cases: Mapping[str, Mapping[str, object]],
    rounds: int,
    *,
    warm_ups: int = 1,
    check: Callable[[Mapping[str, Answer]], None] = lambda answers: None,
) -> dict[str, list[Answer]]:
    """The answers of all cases, `rounds` each, in an order that goes round and round.

    The first `warm_ups` rounds are left out. A case that declines is named and left out. `check`
    sees the very first answers, before anything is timed, and may raise.
    """
    answers: dict[str, list[Answer]] = {name: [] for name in cases}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, case in cases.items():
            workers[name] = Worker(script, case)
            stack.callback(workers[name].close)
        for turn in range(warm_ups + rounds):
            heard = {name: worker.turn() for name, worker in workers.items()}
            for name in [name for name in heard if "skipped" in heard[name]]:
                print(f"skipped {name}: {heard.pop(name)['skipped']}", flush=True)
                del workers[name], answers[name]
            if turn == 0:
                check(heard)
            if turn >= warm_ups:
                for name, answer in heard.items():
                    answers[name].append(answer)
    return answers


def middle(answers: Sequence[Answer], field: str) -> float:
    """The median of one number."""
    return median(answer[field] for answer in answers)


@dataclass(frozen=True)
class Bar:
    """A ratio and the limit that it has to keep."""

    name: str
    value: float | None
    """None when a peer was skipped."""
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """`ours / theirs`, None when either is missing."""
    return None if ours is None or theirs is None else ours / theirs


def print_bars(bars: Sequence[Bar]) -> None:
    verdicts = {True: "holds", False: "MISSED", None: "not measured"}
    rows = [
        (
            bar.name,
            "-" if bar.value is None else f"{bar.value:.3g}",
            f"{'>=' if bar.at_least else '<='} {bar.limit:g}",
            verdicts[bar.holds],
        )
        for bar in bars
    ]
    print_table(("bar", "measured", "limit", ""), rows)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    print(flush=True)


def save(path: Path, content: Mapping[str, object], bars: Sequence[Bar]) -> None:
    """Write `path`: what was measured, the bars, and on what."""
    path.parent.mkdir(parents=True, exist_ok=True)
    judged = [{**asdict(bar), "holds": bar.holds} for bar in bars]
    document = {"machine": machine(), **content, "bars": judged}
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {path}")


def machine() -> dict[str, object]:
    """What a reader needs to judge the numbers; nothing that names the machine."""
    processor = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": processor.group(1) if processor else platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        **installed(),
        "command": " ".join(["python", f"scripts/bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def installed() -> dict[str, str]:
    """Versions of the libraries that decide the numbers."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
