"""Boxes from outside: what they are given and give back, and what happens when things go wrong."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from rewards.sandbox import Limits, Outcome, Running, map_bounded, run, start
from rewards.sandbox.cgroup import groups
from tests.sandbox.test_hostile import survivors

ROOT = Path(__file__).resolve().parents[2]
SLEEP = "import time; time.sleep(30)"


def python(text: str, *arguments: str) -> tuple[str, ...]:
    return ("python", "-I", "-c", text, *arguments)


def eventually(condition, seconds: float = 10.0) -> bool:
    latest = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > latest:
            return False
        time.sleep(0.02)
    return True


def has_started(running: Running) -> bool:
    return eventually(lambda: running._started is not None)


def test_a_program_reads_and_writes() -> None:
    text = "import sys; print(open('a/b.txt').read() + input()); print('e', file=sys.stderr)"
    outcome = run(python(text), files={"a/b.txt": b"one"}, stdin=b"two\nthree\n")
    assert (outcome.ending, outcome.code) == ("exit", 0)
    assert (outcome.stdout, outcome.stderr) == (b"onetwo\n", b"e\n")
    assert 0 < outcome.seconds < 10


@pytest.mark.parametrize("code", [0, 1, 3, 125, 127])
def test_exit_codes_are_the_programs_own(code: int) -> None:
    outcome = run(("bash", "-c", f"exit {code}"))
    assert (outcome.ending, outcome.code) == ("exit", code)


def test_a_command_that_is_not_there_ends_as_in_a_shell() -> None:
    assert (outcome := run(("no-such-command",))).code == 127, outcome


def test_packages_of_our_python_are_there() -> None:
    import numpy

    outcome = run(python("import numpy; print(numpy.__version__)"))
    assert outcome.stdout.decode().strip() == numpy.__version__, outcome.stderr


def test_descriptors_go_in_by_number() -> None:
    (out_reader, out_writer), (in_reader, in_writer) = os.pipe(), os.pipe()
    text = "import os; os.write(4, os.read(3, 10).upper()); print(os.listdir('/proc/self/fd'))"
    running = start(python(text), descriptors={3: in_reader, 4: out_writer})
    os.close(out_writer)
    os.close(in_reader)
    os.write(in_writer, b"hello")
    outcome = running.wait()
    assert os.read(out_reader, 10) == b"HELLO", outcome
    assert os.read(out_reader, 10) == b"", "a copy stayed open after the end"
    assert outcome.stdout == b"['0', '1', '2', '3', '4', '5']\n"  # the last is the listing
    os.close(out_reader)
    os.close(in_writer)


def test_numbers_inside_may_be_those_of_others_outside() -> None:
    insides, ours = range(3, 50), {}
    for inside in reversed(insides):
        with open(os.memfd_create("numbered"), "wb", buffering=0) as file:
            file.write(b"%d " % inside)
            # high, so that copies of them would get the numbers that others have inside
            ours[inside] = fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, 300)
    text = f"import os; print(*(os.pread(n, 9, 0).decode() for n in {insides}))"
    outcome = run(python(text), descriptors=ours)
    for descriptor in ours.values():
        os.close(descriptor)
    assert list(map(int, outcome.stdout.split())) == list(insides), outcome


def test_nothing_of_ours_stays_open() -> None:
    run(python("pass"))
    before = len(os.listdir("/proc/self/fd"))
    for text in ("pass", "import os; os.abort()", "while True: print('x' * 9999)"):
        run(python(text))
    run(python(SLEEP), limits=Limits(seconds=0.05))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_deadline_of_zero_ends_at_once() -> None:
    outcome = run(python(SLEEP), limits=Limits(seconds=0))
    assert outcome.ending == "timeout" and outcome.seconds < 3


def test_a_box_killed_from_outside_is_a_fault() -> None:
    """Whoever kills it, nothing is known of the program, which must not survive."""
    for victim in ("monitor", "first"):
        mark = f"opd-killed-{os.getpid()}-{victim}"
        running = start(python(SLEEP, mark))
        assert has_started(running) and running._spawned is not None
        monitor = running._spawned.process.pid
        children = Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()
        os.kill(monitor if victim == "monitor" else int(children[0]), signal.SIGKILL)
        outcome = running.wait()
        assert outcome.ending == ("fault" if victim == "monitor" else outcome.ending)
        assert outcome.ending in ("fault", "signal")
        assert not survivors(mark)


def test_a_caller_may_kill() -> None:
    mark = f"opd-caller-{os.getpid()}"
    running = start(python(SLEEP, mark))
    assert has_started(running) and running._spawned is not None
    group = os.getpgid(running._spawned.process.pid)
    assert group != os.getpgrp(), "an interrupt from our terminal would end it"
    running.kill()
    assert (outcome := running.wait()).ending == "signal" and outcome.code == signal.SIGKILL
    running.kill()
    assert running.wait() == outcome
    assert not survivors(mark)
    early = start(python(SLEEP))
    early.kill()
    assert early.wait().seconds < 5


def test_a_box_outlives_the_thread_that_started_it() -> None:
    """The kernel ties a box to the thread that started it, not to the process."""
    found: list[Running] = []
    text = "import time; time.sleep(0.3); print('whole')"
    thread = threading.Thread(target=lambda: found.append(start(python(text))))
    thread.start()
    thread.join()
    assert found[0].wait().stdout == b"whole\n"


def test_a_box_dies_with_us() -> None:
    mark = f"opd-orphan-{os.getpid()}"
    script = (
        "from rewards.sandbox import start\n"
        f"running = start(('python', '-I', '-c', {SLEEP!r}, {mark!r}))\n"
        "while running._started is None: pass\n"
        "print('started', flush=True)\n"
        "running.wait()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment
    ) as ours:
        assert ours.stdout is not None and ours.stdout.readline() == b"started\n"
        inside = set(survivors(mark)) - {str(ours.pid)}
        assert inside
        ours.kill()
    try:
        assert eventually(lambda: not inside & set(survivors(mark)), 5)
    finally:
        for process in inside & set(survivors(mark)):
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)


def test_a_forked_process_has_boxes_of_its_own() -> None:
    """And when it ends, cleaning up as it should, it takes nothing of ours away."""
    script = (
        "import os\n"
        "from rewards.sandbox import run\n"
        "def says(text): return run(('bash', '-c', 'echo ' + text)).stdout.decode().strip()\n"
        "words = [says('before')]\n"
        "child = os.fork()\n"
        "words.append(says('after'))\n"
        "if child:\n"
        "    os.waitpid(child, 0)\n"
        "    words.append(says('last'))\n"
        "print(*words, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "before after\nbefore after last\n", done.stderr


def test_two_hundred_at_once() -> None:
    limits = Limits(seconds=60, memory=256 << 20)
    running = [
        start(python(f"print({n} * int(input()))"), stdin=b"3\n", limits=limits) for n in range(200)
    ]
    outcomes = [one.wait() for one in running]
    assert [outcome.stdout for outcome in outcomes] == [b"%d\n" % (3 * n) for n in range(200)]


def test_neither_a_full_disk_nor_a_jumping_clock_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A box takes nothing from the host's disk and asks the time of no clock that is set."""

    def full(*args: object, **given: object) -> None:
        raise OSError(28, "No space left on device")

    times = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    monkeypatch.setattr(tempfile, "mkstemp", full)
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    assert run(python("print(1)"), files={"x": b"y" * 10**6}).stdout == b"1\n"


def test_the_pool_keeps_order_and_bounds() -> None:
    lock, busy, most = threading.Lock(), 0, 0

    def call(number: int) -> int:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02 * (number % 3))
        with lock:
            busy -= 1
        return number**2

    assert map_bounded(call, range(20), workers=3) == [number**2 for number in range(20)]
    assert 1 < most <= 3
    assert map_bounded(call, [], workers=3) == []


def test_one_of_a_pool_hangs_and_the_rest_do_not() -> None:
    def ended(seconds: float) -> Outcome:
        return run(python(f"import time; time.sleep({seconds})"), limits=Limits(seconds=0.8))

    outcomes = map_bounded(ended, [0, 60, 0, 60, 0], workers=2)
    assert [outcome.ending for outcome in outcomes] == ["exit", "timeout"] * 2 + ["exit"]


@pytest.mark.parametrize(
    "limits",
    [
        {"seconds": -1},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"memory": 0},
        {"processes": 0},
        {"output": 0},
        {"disk": 0},
    ],
)
def test_a_limit_that_limits_nothing_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        Limits(**limits)  # type: ignore[arg-type]


def test_names_that_lead_out_and_numbers_that_collide_are_refused() -> None:
    for inside in (0, 2, 100):
        with pytest.raises(ValueError, match="give 3 to 99"):
            start(python("pass"), descriptors={inside: 1})
    for name in ("../x", "/etc/x", ""):
        with pytest.raises(ValueError, match="leads out of the box"):
            start(python("pass"), files={name: b""})


def test_no_two_boxes_share_a_group() -> None:
    """Nor when many threads ask at once, in a process that has made none."""
    script = (
        "import threading\n"
        "from rewards.sandbox.cgroup import groups\n"
        "from rewards.sandbox.limits import Limits\n"
        "together, taken = threading.Barrier(16), []\n"
        "def take():\n"
        "    together.wait()\n"
        "    ours = groups()\n"
        "    taken.append(ours and ours.take(Limits()).folders)\n"
        "threads = [threading.Thread(target=take) for _ in range(16)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "print(taken[0] is not None, len(set(taken)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() in (["True", "16"], ["False", "1"])


def test_no_ended_process_is_left_to_others() -> None:
    """Not every process 1 reaps what is left to it, and what nobody reaps is counted for ever."""
    if (ours := groups()) is None:
        pytest.skip("control groups, which count, cannot be made here")
    for text in ("pass", "while True: print('x' * 9999)", SLEEP):
        for _ in range(3):
            run(python(text), limits=Limits(seconds=0.2))
            assert ours.free and ours.free[-1].is_empty(), text


def test_groups_are_taken_again_and_removed() -> None:
    ours = groups()
    if ours is None:
        pytest.skip("control groups cannot be made here")
    for _ in range(3):
        run(python("pass"))
    folders = [folder for group in ours.made for folder in group.folders]
    assert all(folder.is_dir() for folder in folders)
    script = (
        "from rewards.sandbox import run\n"
        "from rewards.sandbox.cgroup import groups\n"
        "run(('bash', '-c', 'true'))\n"
        "for group in groups().made:\n"
        "    for folder in group.folders: print(folder)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    made = done.stdout.split()
    assert made and not any(map(os.path.exists, made))


def test_signals_end_a_program_as_usual_though_we_ignore_them() -> None:
    """As in whatever a shell has started in the background."""
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        text = b"import signal; print(signal.getsignal(signal.SIGINT).__name__)"
        outcome = run(("python", "-I", "-S", "main.py"), files={"main.py": text})
    finally:
        signal.signal(signal.SIGINT, usual)
    assert outcome.stdout == b"default_int_handler\n", outcome
