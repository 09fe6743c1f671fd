"""Where no box can be had, nothing runs unless the user has said so twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyseccomp
import pytest

from opd.doctor import sandbox
from opd.errors import SandboxError
from rewards.sandbox import Limits, isolation, landlock, run
from rewards.sandbox.tiers import ACCEPTANCE, second_test, self_test

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1"
LEAKY = f'exec {shutil.which("bwrap")} --unshare-pid "${{@/--unshare-all/--unshare-uts}}"'
"""What stands in for bubblewrap: one that may not, one that shares the network."""


@pytest.fixture(autouse=True)
def tested_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a kernel without Landlock, which has tests of its own."""
    monkeypatch.setattr(landlock, "version", lambda: 0)
    self_test.cache_clear()
    second_test.cache_clear()
    yield
    self_test.cache_clear()
    second_test.cache_clear()


def stand_in(folder: Path, script: str, patch: pytest.MonkeyPatch) -> None:
    """A PATH on which bwrap is `script`, or missing when there is none."""
    for name in ("bash", "sh", "setpriv", "nsenter", "unshare", "sleep"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    if script:
        (folder / "bwrap").write_text(f"#!/bin/bash\n{script}\n")
        (folder / "bwrap").chmod(0o755)
    # others must be able to run it too
    patch.setenv("PATH", str(folder))


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user can get to."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("", "bwrap is not on the PATH; apt-get install bubblewrap"),
        (FORBIDDEN, "bwrap: setting up uid map: Permission denied"),
        (LEAKY, "a program got past namespaces"),
    ],
    ids=["missing", "forbidden", "leaky"],
)
def test_without_a_box_nothing_runs(
    script: str, cause: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(folder, script, monkeypatch)
    # the environment alone is no consent
    monkeypatch.setenv(ACCEPTANCE, "yes")
    with pytest.raises(SandboxError) as raised:
        run(("bash", "-c", f"touch {folder}/ran"))
    said = str(raised.value)
    assert cause in said and "Landlock is of version 0" in said
    assert "AppArmor" in said and "kernel.apparmor_restrict_unprivileged_userns=0" in said
    assert "Docker" in said and "--security-opt seccomp=unconfined" in said
    assert raised.value.exit_code == 3
    assert not (folder / "ran").exists()
    check = sandbox()
    assert check.status == "absent" and "apt-get install bubblewrap" in check.found


def test_one_consent_is_not_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(folder, FORBIDDEN, monkeypatch)
    for value in (None, "", "no", "1", "true"):
        if value is None:
            monkeypatch.delenv(ACCEPTANCE, raising=False)
        else:
            monkeypatch.setenv(ACCEPTANCE, value)
        with pytest.raises(SandboxError, match=f"{ACCEPTANCE}=yes must be set too"):
            run(("bash", "-c", f"touch {folder}/ran"), otherwise="unsandboxed")
    assert not (folder / "ran").exists()


def test_two_consents_run_it_and_leave_a_stamp(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(folder, FORBIDDEN, monkeypatch)
    monkeypatch.setenv(ACCEPTANCE, "yes")
    standing = isolation("unsandboxed")
    assert (standing.tier, standing.layers, standing.stamp) == ("none", (), "UNSANDBOXED")
    assert "UNSANDBOXED" in standing.sentence


def test_a_declared_boundary_stands_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(folder, FORBIDDEN, monkeypatch)
    standing = isolation("external")
    assert (standing.tier, standing.layers, standing.stamp) == ("external", (), "")


def test_without_a_box_deadlines_and_caps_still_hold(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(folder, FORBIDDEN, monkeypatch)
    monkeypatch.setenv("OPD_SECRET", "x")

    def bare(text: str, limits: Limits | None = None):
        files = {"main.py": text.encode()}
        return run(("python", "-I", "main.py"), files=files, limits=limits, otherwise="external")

    seen = bare("import os; print(os.environ, os.listdir('/proc/self/fd'), os.listdir())")
    assert b"OPD_SECRET" not in seen.stdout
    assert seen.stdout.endswith(b"['0', '1', '2', '3'] ['main.py']\n"), seen
    assert bare("while True: pass", Limits(seconds=0.2)).ending == "timeout"
    assert bare("while True: print('x' * 9999)").ending == "output"
    assert b"MemoryError" in bare("bytearray(2 << 30)").stderr
    assert bare("import os; os.abort()").code == 6
    started = time.monotonic()
    forked = bare("import os, time\nif (n := os.fork()) == 0: time.sleep(60)\nprint(n)")
    assert forked.ending == "exit" and time.monotonic() - started < 9
    with pytest.raises(ProcessLookupError):
        while time.monotonic() - started < 30:  # whatever is process 1 may reap it late
            os.kill(int(forked.stdout), 0)
            time.sleep(0.05)


def test_consent_changes_nothing_where_the_box_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ACCEPTANCE, "yes")
    for otherwise in ("refuse", "external", "unsandboxed"):
        standing = isolation(otherwise)
        assert (standing.tier, standing.stamp) == ("bwrap", "")
    assert sandbox().status == "ok" and "system calls" in sandbox().found


UNPRIVILEGED = """\
import os, sys
from rewards.sandbox import isolation, run
standing = isolation()
print(standing.tier, len(standing.layers), os.getuid())
print(run(("python", "-I", "-c", "import os; print(os.getuid())")).stdout)
"""


@pytest.mark.parametrize("user", [4321, 0])
def test_it_works_without_privileges(user: int, folder: Path) -> None:
    """As a user of no rank, or of the highest, with the Python of the system."""
    system_python = Path("/usr/bin/python3")
    if os.geteuid() != 0 or not system_python.exists():
        pytest.skip("needs root, to become another user, and a Python in /usr")
    shutil.copytree(ROOT / "rewards", folder / "rewards")
    (folder / "opd").mkdir()
    (folder / "opd" / "__init__.py").touch()
    shutil.copy(ROOT / "opd" / "errors.py", folder / "opd")
    shutil.copy(pyseccomp.__file__, folder)
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    done = subprocess.run(
        [str(system_python), "-c", UNPRIVILEGED],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)},
        user=user,
        group=user,
        extra_groups=[],
        capture_output=True,
        text=True,
        cwd="/",
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0] in (f"bwrap 11 {user}", f"bwrap 12 {user}") and lines[1] == r"b'65534\n'"
