"""What a box costs: a program beside bare Python, a grade, and how many a second, two at a time.

A program does nothing; a grade is a right program in one box and its three assertions in another.
They take turns, so that whatever else the machine does falls on all. Exits 1 when a bar is missed.
Takes about a minute.

    python scripts/bench/sandbox.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median, quantiles

from measure import RESULTS, Bar, print_bars, print_table, save

from opd.privileged import ProgramTests
from rewards.code import grade
from rewards.sandbox import isolation, map_bounded, run

ROUNDS = 200
AT_A_TIME = 2
MOST_OVERHEAD = 25.0
"""Milliseconds, of the median."""
LEAST_GRADES = 30.0
"""A second."""
NOTHING = ("-I", "-c", "pass")
PROGRAM = "def add(a, b):\n    return a + b\n"
TESTS = ProgramTests(
    ("assert add(1, 2) == 3", "assert add(40, 2) == 42", "assert add(-1, 1) == 0"),
)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    started = time.perf_counter()
    standing = isolation()
    testing = time.perf_counter() - started
    print(f"{standing} (tested in {testing:.2f} s)", flush=True)
    ways = {"bare python": bare, "box": boxed, "grade": graded}
    taken = by_turns(ways, options.rounds)
    rates = {name: per_second(call, options.rounds) for name, call in ways.items()}
    print_table(
        ("", "median ms", "p95 ms", f"a second, {AT_A_TIME} at a time"),
        [
            (name, f"{median(times):.1f}", f"{p95(times):.1f}", f"{rates[name]:.1f}")
            for name, times in taken.items()
        ],
    )
    both = zip(taken["bare python"], taken["box"], strict=True)
    overhead = [box - plain for plain, box in both]
    bars = [
        Bar("overhead of a box, median ms", median(overhead), MOST_OVERHEAD),
        Bar("two-process grades a second", rates["grade"], LEAST_GRADES, at_least=True),
    ]
    print_bars(bars)
    content = {
        "rounds": options.rounds,
        "real_time_priority": os.sched_getscheduler(0) != os.SCHED_OTHER,
        "layers": standing.layers,
        "self_test_seconds": testing,
        "median_ms": {name: median(times) for name, times in taken.items()},
        "p95_ms": {name: p95(times) for name, times in taken.items()},
        "overhead_ms": {"median": median(overhead), "p95": p95(overhead)},
        "per_second": rates,
    }
    save(options.results / "sandbox.json", content, bars)
    return int(not all(bar.holds for bar in bars))


def bare() -> None:
    subprocess.run([sys.executable, *NOTHING], stdin=subprocess.DEVNULL, capture_output=True)


def boxed() -> None:
    outcome = run(("python", *NOTHING))
    assert (outcome.ending, outcome.code) == ("exit", 0), outcome


def graded() -> None:
    verdict = grade(PROGRAM, TESTS)
    assert verdict.success, verdict


def by_turns(ways: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every call; the first round is left out."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + rounds):
        for name, call in ways.items():
            began = time.perf_counter()
            call()
            if turn:
                taken[name].append((time.perf_counter() - began) * 1000)
    return taken


def per_second(call: Callable[[], None], calls: int) -> float:
    """How many calls end in a second, a few at a time."""
    began = time.perf_counter()
    map_bounded(lambda _: call(), range(calls), workers=AT_A_TIME)
    return calls / (time.perf_counter() - began)


def p95(values: list[float]) -> float:
    return quantiles(values, n=20)[-1]


if __name__ == "__main__":
    sys.exit(main())
