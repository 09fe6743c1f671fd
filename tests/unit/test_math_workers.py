"""Comparisons end by their deadline wherever they are asked for, and no process is lost or left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from opd.config import ROOT
from opd.types import Verdict
from rewards.math import grade, pool
from rewards.math.pool import Pool, Reply, WorkerFaultError

DEADLINE = 1.0
AT_ONCE = 4


def nested(left: str, inner: str, right: str, times: int) -> str:
    return left * times + inner + right * times


GRID = r" \\ ".join(" & ".join(f"a_{{{i}}}b_{{{j}}}" for j in range(30)) for i in range(30))
BOMBS = {
    "tower": "9^{9^{9^9}}",
    "power": "10^{10^{10}}",
    "power on both sides": "2^{10^9}",
    "factorial": "100000000!",
    "factorials": "((10!)!)!",
    "binomial": r"\binom{10^9}{5\cdot 10^8}",
    "sum": r"\sum_{n=1}^{10^{12}} n^n",
    "product": r"\prod_{n=1}^{10^9} n",
    "trinomial": "(x+y+z)^{3000}",
    "integral": r"\int_0^{9^{9^9}}\int_0^{9^{9^9}}\int_0^{9^{9^9}} x^{y^z} \,dx\,dy\,dz",
    "functions": nested(r"\sin(\cos(\tan(", "x", ")))", 67),
    "digits": "9" * 1_000_000,
    "fractions": nested(r"\frac{1}{1+", "x", "}", 3000),
    "parentheses": nested("(", "1", ")", 5000),
    "braces": "{" * 100_000,
    "boxes": r"1}\boxed{" * 50_000 + "1",
    "points": "1.2.3,4 " * (1 << 17),
    "dollars": "$ " * (1 << 19),
    "roots": nested(r"\sqrt{", "2", "}", 300),
    "equation": r"x^{50} + \sin(x^{49}) + e^{x^{48}} = \cos(x^{47}) + \ln(x^{46})",
    "set": rf"\{{{','.join(map(str, range(3000)))},\sqrt2\}}",
    "matrix": rf"\begin{{pmatrix}} {GRID} \end{{pmatrix}}^{{30}}",
    "series": r"\sum_{n=1}^{\infty} \frac{\sin(n)}{n^n}",
    "code in the box": "__import__('os').abort()",
    "code behind the box": "1} __import__('os').abort() {",
    "exponent": "1e99999999",
    "number": r"9\cdot 10^{99999999}",
    "remainder": r"7^{10^{12}} \bmod 10",
}
GOLDS = {"power on both sides": BOMBS["power on both sides"], "trinomial": "x^2+y"}


def graded(name: str) -> tuple[str, Verdict, float]:
    """A bomb in a box, judged; seconds."""
    started = time.monotonic()
    verdict = grade(rf"So \boxed{{{BOMBS[name]}}}", GOLDS.get(name, "204"), deadline=DEADLINE)
    return name, verdict, time.monotonic() - started


def asked(name: str, ask: Callable[[Reply, float], Reply] = pool.ask) -> tuple[str, object, float]:
    """A bomb that no policy keeps from a worker; what became of it, and seconds."""
    started = time.monotonic()
    request: Reply = {"golds": [GOLDS.get(name, "204")], "given": BOMBS[name]}
    try:
        found: object = ask(request, DEADLINE).get("equal", False)
    except WorkerFaultError as fault:
        found = str(fault)
    return name, found, time.monotonic() - started


def check_in_time(
    found: Sequence[tuple[str, object, float]], again: Callable[[str], tuple[str, object, float]]
) -> None:
    """What is late by the clock is timed once more: the machine may have been busy."""
    late = [name for name, _, seconds in found if seconds > DEADLINE + 1]
    assert len(late) <= 3
    assert {name: again(name)[2] <= DEADLINE + 1 for name in late} == dict.fromkeys(late, True)


def check_graded(found: list[tuple[str, Verdict, float]]) -> None:
    assert [name for name, _, _ in found] == list(BOMBS)
    passed = [name for name, verdict, _ in found if verdict.success]
    assert passed == ["power on both sides"]
    check_in_time(found, graded)


def check_asked(found: list[tuple[str, object, float]]) -> None:
    assert [name for name, _, _ in found] == list(BOMBS)
    assert [name for name, equal, _ in found if equal is True] == ["power on both sides"]
    check_in_time(found, asked)
    killed = [name for name, what, _ in found if isinstance(what, str)]
    assert len(killed) >= 10, "the bombs should be bombs"


def processes(parent: int) -> dict[int, int]:
    """Process id to parent of the nurseries that `parent` has started and of their workers."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if pool.SCRIPT.name in (entry / "cmdline").read_text():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    found[int(entry.name)] = int(fields[1])
    mine = {child for child, above in found.items() if above == parent}
    return {child: above for child, above in found.items() if {child, above} & mine}


@contextmanager
def own_pool() -> Iterator[Pool]:
    """A pool that has started all its workers, and loses none."""
    before = processes(os.getpid())
    started = Pool(AT_ONCE)
    work_all(started)
    yield started
    work_all(started)
    assert len(processes(os.getpid())) == len(before) + 1 + AT_ONCE
    started.close()
    wait_until(lambda: processes(os.getpid()) == before)


def work_all(started: Pool) -> None:
    """Have every worker of a pool answer at the same time."""
    together = threading.Barrier(AT_ONCE)

    def work(number: int) -> None:
        together.wait(30)
        root = rf"\sqrt{{{2 * number**2}}}"
        reply = started.ask({"golds": [rf"{number}\sqrt2"], "given": root}, 30)
        assert reply["equal"] is True

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(work, range(3, 3 + AT_ONCE)))


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it does not come true"
        time.sleep(0.05)


@pytest.fixture(scope="module", autouse=True)
def started() -> None:
    """No deadline counts what the first call of a process waits for its workers."""
    pool.ask({"golds": ["1"], "given": "2"}, 60)


def test_bombs_in_the_main_thread():
    check_graded([graded(name) for name in BOMBS])
    few = ["tower", "product", "functions", "roots"]
    assert [asked(name)[2] <= DEADLINE + 1 for name in few] == [True] * len(few)


def test_bombs_in_other_threads():
    with own_pool() as mine, ThreadPoolExecutor(AT_ONCE) as threads:
        check_graded(list(threads.map(graded, BOMBS)))
        check_asked(list(threads.map(lambda name: asked(name, mine.ask), BOMBS)))


def test_bombs_in_an_event_loop():
    async def every() -> list[tuple[str, object, float]]:
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(name: str) -> tuple[str, object, float]:
            async with limit:
                return await asyncio.to_thread(asked, name, mine.ask)

        check_graded([graded(name) for name in BOMBS])
        return await asyncio.gather(*map(one, BOMBS))

    with own_pool() as mine:
        check_asked(asyncio.run(every()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_bombs_in_a_process_pool(method: str):
    processes_before = processes(os.getpid())
    with ProcessPoolExecutor(
        2 if method == "fork" else 1, get_context(method), initializer=warm
    ) as children:
        check_graded(list(children.map(graded, BOMBS)))
        if method == "fork":
            check_asked(list(children.map(asked, BOMBS)))
        ids = set(children.map(own_id, range(20)))
        owned = {child for parent in ids for child in processes(parent)}
        # Each has a nursery, and a worker unless the last bomb has cost it.
        assert len(owned) >= len(ids)
    wait_until(lambda: not any(map(is_alive, owned)))
    assert processes(os.getpid()) == processes_before


def warm() -> None:
    pool.ask({"golds": ["1"], "given": "2"}, 60)


def own_id(_: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def is_alive(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def workers(parent: int) -> list[int]:
    return [child for child, above in processes(parent).items() if above != parent]


def nurseries(parent: int) -> list[int]:
    return [child for child, above in processes(parent).items() if above == parent]


def test_a_worker_that_was_killed_is_replaced():
    with own_pool() as mine:
        for worker in workers(os.getpid()):
            os.kill(worker, signal.SIGKILL)
        assert mine.ask({"golds": ["x+1"], "given": "1+x"}, 30)["equal"] is True


def test_a_nursery_that_was_killed_is_replaced_and_takes_its_workers_along():
    pool.ask({"golds": ["x+1"], "given": "1+x"}, 30)
    (nursery,) = nurseries(os.getpid())
    orphans = workers(os.getpid())
    os.kill(nursery, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, orphans)))
    assert pool.ask({"golds": ["x+2"], "given": "2+x"}, 30)["equal"] is True
    assert nurseries(os.getpid()) not in ([], [nursery])


def test_a_worker_that_dies_at_its_first_work_gives_no_verdict():
    mine = Pool(1)
    others = set(workers(os.getpid()))

    def kill() -> None:
        wait_until(lambda: bool(set(workers(os.getpid())) - others))
        for worker in set(workers(os.getpid())) - others:
            os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(WorkerFaultError, match="the worker died"):
        mine.ask({"golds": ["204"], "given": BOMBS["product"]}, 60)
    killer.join()
    mine.close()


def test_a_worker_holds_little_and_knows_nothing_of_torch(monkeypatch: pytest.MonkeyPatch):
    library = Path(torch.__file__).parent / "lib" / "libtorch_global_deps.so"
    monkeypatch.setenv("LD_PRELOAD", str(library))  # as vLLM does with one of torch's on a CPU
    with own_pool() as mine:
        mine.ask({"golds": ["x+1"], "given": "1+x"}, 30)
        check_workers()


def check_workers() -> None:
    for worker in workers(os.getpid()):
        limits = Path(f"/proc/{worker}/limits").read_text()
        assert f"Max address space         {pool.MEMORY}" in limits
        assert "torch" not in Path(f"/proc/{worker}/maps").read_text()
        opened = {os.readlink(file) for file in Path(f"/proc/{worker}/fd").iterdir()}
        assert all(name.startswith(("/dev/null", "socket:", "pipe:")) for name in opened)


PARENT = """
import ctypes, os, sys, threading, time
from rewards.math import grade, pool
pool.ask({"golds": ["1"], "given": "2"}, 60)
bomb = {"golds": ["204"], "given": r"\\prod_{n=1}^{10^9} n"}
def burn():
    try:
        pool.ask(bomb, 60)
    except pool.WorkerFaultError:
        pass
threading.Thread(target=burn, daemon=True).start()
time.sleep(0.5)
if sys.argv[1] == "heir" and not ctypes.CDLL(None).fork():
    ctypes.CDLL(None).sleep(12)  # a child that Python knows nothing of, with every file open
    os._exit(0)
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("way", ["ends", "killed", "heir"])
def test_no_process_outlives_its_parent(way: str):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout and parent.stdout.readline() == b"ready\n"
    owned = processes(parent.pid)
    assert len(owned) >= 2
    if way != "ends":
        parent.kill()
    assert parent.stdin
    parent.stdin.close()
    parent.stdout.close()  # which the heir holds open, so that nothing may wait for its end
    parent.wait(30)
    wait_until(lambda: not any(map(is_alive, owned)), 10)
