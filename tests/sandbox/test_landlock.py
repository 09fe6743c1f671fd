"""Where bubblewrap is missing, Landlock stands in: what programs do not get further than then."""

from __future__ import annotations

import logging
import os
import platform
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyseccomp
import pytest

from opd.doctor import sandbox
from opd.errors import SandboxError
from rewards.sandbox import (
    Limits,
    Running,
    isolation,
    landlock,
    run,
    running,
    spawn,
    start,
    system_calls,
    tiers,
)
from rewards.sandbox.interpreter import SHARED, Interpreter
from rewards.sandbox.tiers import tried
from tests.sandbox import test_hostile
from tests.sandbox.programs import DENIED, NUMBERS, PRELUDE, PROGRAMS, Check, fails, says
from tests.sandbox.test_hostile import LEEWAY, Host, brief, survivors

host = test_hostile.host
ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = SHARED / "bin" / "python3"
NEEDED = ("bash", "rm", "sleep")
LOOSE = "the kernel counts a user's processes together, so that the cap is loose"
NOT_CONTAINED = {
    "counts its children": LOOSE,
    "never reaps": LOOSE,
    "threads for ever": LOOSE,
    "fills /tmp with many files": "one file has a size, a folder has none",
    "reads keys": "names of files can be seen, their content cannot, as a test below shows",
    "lists inherited descriptors": "/proc is closed; a test below counts them without it",
    "NUL in its source": "of the system's Python, which may be one that reads on",
}
"""What this tier does not stop, or what cannot be asked here."""
CLOSED = says(r"EACCES\n")
ANOTHER_ERROR: dict[str, Check] = {
    # there is nobody else to kill
    "kills all": says(r"DONE\n"),
    "hijacks the first process": fails("PermissionError"),
    "fills /dev/shm": says(r"EACCES True\n"),
    "reads the grader's tests": CLOSED,
    "climbs": CLOSED,
    "follows a link of its own": CLOSED,
    "hard links": says(r"(EPERM|EXDEV|EACCES)\n(EPERM|EXDEV|EACCES)\n"),
    "overwrites programs": says(r"(EACCES\n){4}EPERM\n"),
    "unlinks itself": CLOSED,
    "writes beside itself": CLOSED,
    "runs setuid programs": fails("PermissionError"),
    "makes devices": says(DENIED),
    "leaves its control group": CLOSED,
    "spares itself when memory is short": fails("PermissionError"),
}
"""The same refusal in other words."""
REQUIRED = (
    *("network", "privileges", "system calls", "files", "other processes", "limits", "survivors"),
    *("environment", "descriptors", "deadline", "output"),
)
DAEMON = """\
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for n in range(3): os.close(n)
        time.sleep(1e6)
    os._exit(0)
os.wait()
"""


@pytest.fixture(scope="module", autouse=True)
def stand_in() -> Iterator[None]:
    """A PATH without bubblewrap and, where ours is closed to others, the system's Python."""
    patch = pytest.MonkeyPatch()
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        for program in NEEDED:
            found = shutil.which(program)
            assert found is not None
            Path(name, program).symlink_to(found)
        patch.setenv("PATH", name)
        # of our own, so that what others leave is not taken for ours
        boxes = Path(name, "boxes")
        boxes.mkdir(mode=0o755)
        patch.setattr(tempfile, "tempdir", str(boxes))
        try:
            landlock.check()
        except SandboxError as error:
            if "is closed to the user" not in str(error) or not SYSTEM_PYTHON.exists():
                pytest.skip(str(error))
            target = os.path.realpath(SYSTEM_PYTHON)
            for module in (landlock, spawn):
                patch.setattr(module, "interpreter", lambda: Interpreter(target, target, ()))
        forget()
        yield
    patch.undo()
    forget()


def forget() -> None:
    tiers.self_test.cache_clear()
    tiers.second_test.cache_clear()


def in_scratch(source: str) -> str:
    """The same program, which writes where it may: /tmp is the host's here."""
    scratch = "os.environ['TMPDIR'] + "
    return source.replace("f'/tmp", f"{scratch}f'").replace("'/tmp", f"{scratch}'")


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in NOT_CONTAINED])
def test_a_hostile_program_gets_nowhere(name: str, host: Host) -> None:
    program = PROGRAMS[name]
    if program.only_on not in ("", platform.machine()):
        pytest.skip(f"only on {program.only_on}")
    prelude = PRELUDE.format(given=host.given, numbers=NUMBERS) if program.has_prelude else ""
    outcome = run(
        ["python", "-I", "main.py", host.mark],
        files={"main.py": (prelude + in_scratch(program.source)).encode()},
        limits=program.limits,
    )
    assert ANOTHER_ERROR.get(name, program.check)(outcome), brief(outcome)
    assert outcome.seconds <= program.limits.seconds + LEEWAY
    host.check()


def python(text: str, *arguments: str) -> tuple[str, ...]:
    return ("python", "-I", "-c", text, *arguments)


def has_started(running: Running) -> bool:
    latest = time.monotonic() + 10
    while running._started is None and time.monotonic() < latest:
        time.sleep(0.01)
    return running._started is not None


def test_it_stands_in_by_itself_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    forget()
    with caplog.at_level(logging.WARNING):
        found = [isolation(), isolation()]
    standing = found[0]
    assert found == [standing, standing] and (standing.tier, standing.stamp) == ("landlock", "")
    assert standing.layers in (REQUIRED, (*REQUIRED, "group"))
    assert "weaker than bubblewrap" in standing.sentence and "bwrap is not on the" in str(standing)
    assert [record.message for record in caplog.records].count(standing.sentence) == 1
    check = sandbox()
    assert check.status == "ok" and check.found == standing.sentence


def test_a_declared_boundary_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isolation("external").tier == "external"
    monkeypatch.setenv(tiers.ACCEPTANCE, "yes")
    assert isolation("unsandboxed").tier == "landlock"


@pytest.mark.parametrize("version", [0, 5])
def test_an_old_kernel_is_refused(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before version 6 signals leave."""
    forget()
    monkeypatch.setattr(landlock, "version", lambda: version)
    with pytest.raises(SandboxError, match=f"Landlock is of version {version}"):
        run(python("pass"))
    forget()


def test_files_of_the_host_stay_closed(host: Host) -> None:
    names = [
        str(host.secret),
        "/etc/passwd",
        "/etc/shadow",
        "/proc/self/environ",
        "/proc/1/cmdline",
    ]
    text = (
        "import os, sys\n"
        "def works(call, given):\n"
        "    try: call(given)\n"
        "    except OSError: return False\n"
        "    return True\n"
        "calls = (open, os.listdir, os.unlink, lambda name: os.truncate(name, 0), os.utime)\n"
        "print([name for name in sys.argv[1:] for call in calls if works(call, name)])\n"
        "print([number for number in range(4096) if works(os.fstat, number)])\n"
    )
    outcome = run(python(text, *names))
    assert outcome.stdout == b"[]\n[0, 1, 2]\n", brief(outcome)
    host.check()


def test_processes_are_capped_loosely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "groups", lambda: None)
    text = (
        "import os, signal\nn = 0\ntry:\n    while True:\n"
        "        if os.fork() == 0: signal.pause()\n        n += 1\n"
        "except OSError: print(n)"
    )
    outcome = run(python(text), limits=Limits(seconds=20))
    assert 0 < int(outcome.stdout) <= 32 + landlock.SPARE_PROCESSES, outcome


def test_what_is_given_goes_in_and_what_is_said_comes_out() -> None:
    (out_reader, out_writer), (in_reader, in_writer) = os.pipe(), os.pipe()
    text = (
        "import os\nos.write(4, os.read(3, 5).upper())\nos.close(4)\n"
        "os.read(3, 5)\nprint(input(), open('a/b').read())"
    )
    given = {3: in_reader, 4: out_writer}
    box = start(python(text), files={"a/b": b"one"}, stdin=b"two\n", descriptors=given)
    os.close(out_writer)
    os.write(in_writer, b"hello")
    assert os.read(out_reader, 10) == b"HELLO"
    assert select.select([out_reader], [], [], 5)[0], "the launcher kept a copy"
    assert os.read(out_reader, 10) == b""
    os.write(in_writer, b"again")
    outcome = box.wait()
    assert (outcome.ending, outcome.code, outcome.stdout) == ("exit", 0, b"two one\n"), outcome
    for descriptor in (out_reader, in_reader, in_writer):
        os.close(descriptor)
    for code in (0, 3, 127):
        assert (ended := run(("bash", "-c", f"exit {code}"))).code == code, ended
    assert run(("no-such-command",)).code == 127


def test_the_program_keeps_no_signal_of_the_launcher() -> None:
    shown = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    assert run(python(shown)).stdout == b"set()\n"
    # a shell that inherits an ignored one cannot set it again
    assert run(("bash", "-c", "trap 'exit 3' PIPE; kill -PIPE $$")).code == 3


def test_a_group_that_is_not_there_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "groups", lambda: None)
    assert tried("landlock").layers == REQUIRED


def test_nothing_outlives_a_deadline_or_a_caller(host: Host) -> None:
    assert run(python(DAEMON + "time.sleep(99)", host.mark), limits=Limits(seconds=0.5)).code == 9
    assert not survivors(host.mark)
    box = start(python(DAEMON + "time.sleep(99)", host.mark))
    assert has_started(box) and survivors(host.mark)
    box.kill()
    assert box.wait().ending == "signal" and not survivors(host.mark)
    assert not list(Path(tempfile.gettempdir()).glob("opd-box-*"))


def test_a_launcher_killed_from_outside_is_a_fault() -> None:
    box = start(python("import time; time.sleep(30)"))
    assert has_started(box) and box._spawned is not None
    os.kill(box._spawned.process.pid, signal.SIGKILL)
    assert box.wait().ending == "fault"


def test_folders_of_any_depth_are_removed() -> None:
    text = (
        "import os\nos.chdir(os.environ['TMPDIR'])\n"
        "for _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\nprint('made')"
    )
    assert run(python(text)).stdout == b"made\n"
    assert not list(Path(tempfile.gettempdir()).glob("opd-box-*"))


def test_many_at_once() -> None:
    text = (
        "import threading\nones = [threading.Thread(target=print, args=(1,)) for _ in range(4)]\n"
        "for one in ones: one.start()"
    )
    boxes = [start(python(text), limits=Limits(seconds=30)) for _ in range(40)]
    assert [box.wait().stdout for box in boxes] == [b"1\n" * 4] * 40


Remove = Callable[[pytest.MonkeyPatch], None]


def without(line: str, then: str = "pass") -> Remove:
    """A launcher that lacks one line."""
    assert landlock.LAUNCHER.count(line) == 1, line
    text = landlock.LAUNCHER.replace(line, then)
    return lambda patch: patch.setattr(landlock, "LAUNCHER", text)


def handling(**changes: int) -> Remove:
    """Rules that leave something to all."""

    def remove(patch: pytest.MonkeyPatch) -> None:
        for name, value in changes.items():
            patch.setattr(landlock, name, value)

    return remove


def filtered_as_in_a_box(patch: pytest.MonkeyPatch) -> None:
    program = system_calls.program()
    patch.setattr(system_calls, "program", lambda **given: program)


PROVEN: dict[str, tuple[str, Remove]] = {
    "rules": ("files", without('kernel(libc.syscall, RESTRICT_SELF, settings["rules"], 0)')),
    "rules of files": (
        "files",
        handling(
            ALL_OF_FILES=landlock.EXECUTE,
            SCRATCH=landlock.EXECUTE,
            READ=landlock.EXECUTE,
            DEVICES=landlock.EXECUTE,
        ),
    ),
    "filter": (
        "system calls",
        without("kernel(libc.prctl, SECCOMP, FILTER, ctypes.addressof(program), 0, 0)"),
    ),
    "filter for the host": ("files, other processes", filtered_as_in_a_box),
    "end of all": ("survivors", without("os.kill(-1, signal.SIGKILL)")),
    "limits": ("limits", without('resource.setrlimit(number, (most - (name == "CPU"), most))')),
    "descriptors": ("descriptors", without("os.set_inheritable(descriptor, False)")),
}


@pytest.mark.parametrize("name", PROVEN)
def test_the_self_test_misses_a_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, remove = PROVEN[name]
    remove(monkeypatch)
    monkeypatch.setattr(running, "ENDING_SECONDS", 1.0)
    tested = tried("landlock")
    assert not tested.layers
    assert tested.cause.startswith("a program got past ") and layer in tested.cause, tested.cause


UNPRIVILEGED = """\
from rewards.sandbox import isolation, run
standing = isolation()
print(standing.tier, *standing.layers, sep=",")
print(run(("python", "-I", "-c", "import os; print(os.getuid())")).stdout)
"""


@pytest.fixture
def for_all() -> Iterator[dict[str, str]]:
    """The environment of a process that finds us and a way without bubblewrap, whoever runs it."""
    if os.geteuid() != 0 or not SYSTEM_PYTHON.exists():
        pytest.skip("needs root, to become another user, and a Python in /usr")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "rewards", folder / "rewards")
        (folder / "opd").mkdir()
        (folder / "opd" / "__init__.py").touch()
        shutil.copy(ROOT / "opd" / "errors.py", folder / "opd")
        shutil.copy(pyseccomp.__file__, folder)
        subprocess.run(["/usr/bin/chmod", "-R", "a+rX", name], check=True)
        scratch = folder / "tmp"
        scratch.mkdir()
        scratch.chmod(0o1777)
        yield {"PATH": os.environ["PATH"], "PYTHONPATH": name, "TMPDIR": str(scratch)}


def other(
    text: str, user: int, environment: dict[str, str], *arguments: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(SYSTEM_PYTHON), "-c", text, *arguments],
        env=environment,
        user=user,
        group=user,
        extra_groups=[],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )


@pytest.mark.parametrize("user", [4321, 0])
def test_it_works_without_privileges(user: int, for_all: dict[str, str]) -> None:
    """Also where programs run as the user that we are, whose processes they must not reach."""
    with other(UNPRIVILEGED, user, for_all) as process:
        said, errors = process.communicate()
    assert process.returncode == 0, errors
    lines = said.splitlines()
    assert tuple(lines[0].split(","))[: len(REQUIRED) + 1] == ("landlock", *REQUIRED)
    assert lines[1] == rf"b'{user or 65534}\n'"


def test_signals_that_leave_are_a_fault(for_all: dict[str, str]) -> None:
    """Before the program starts, since the launcher ends all that its signals reach."""
    text = (
        "from rewards.sandbox import landlock\n"
        "from rewards.sandbox.running import launch\n"
        "landlock.SIGNALS = landlock.SOCKETS\n"
        "print(launch(('python', '-c', 'pass'), tier='landlock').wait().ending)\n"
    )
    with other(text, 4321, for_all) as process:
        said, errors = process.communicate()
    assert said == "fault\n", errors


def test_a_box_dies_with_us(for_all: dict[str, str]) -> None:
    mark = f"opd-orphan-{os.getpid()}"
    text = (
        "import sys\n"
        "from rewards.sandbox.running import launch\n"
        f"command = ('python', '-c', {DAEMON + 'time.sleep(99)'!r}, sys.argv[1])\n"
        "box = launch(command, tier='landlock')\n"
        "while box._started is None: pass\n"
        "print('started', flush=True)\n"
        "box.wait()\n"
    )
    with other(text, 0, for_all, mark) as process:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        assert len(survivors(mark)) > 1
        process.kill()
    latest = time.monotonic() + 10
    while survivors(mark) and time.monotonic() < latest:
        time.sleep(0.02)
    assert not survivors(mark)
