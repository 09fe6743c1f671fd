"""No method's name and no landfill in the code, no trace of a machine in any file."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("opd", "recipes", "rewards", "data", "scripts", "tests", "docs", ".ci")
TOP_LEVEL = {*FOLDERS, "pyproject.toml", "README.md", "LICENSE", "SECURITY.md", ".gitignore"}

METHODS = {
    *("atesd", "avsd", "curiosft", "dapo", "dasd", "dpo", "effopd", "gkd", "grpo", "minillm"),
    *(
        "opsd",
        "paced",
        "ppo",
        "rloo",
        "sdft",
        "sdpo",
        "sft",
        "soda",
        "srpo",
        "taid",
        "unisd",
        "vpd",
    ),
} | {path.stem.split("_")[0] for path in (ROOT / "recipes").glob("*.yaml")} - {"quickstart"}

LANDFILLS = {"utils", "common", "helpers", "misc", "manager"}

# Written in two halves, so that this file does not hold what it looks for.
TRACES = ["/" + name for name in ("work/", "root/", "home/", "farm/", "opt/wheels", "opt/pypi")] + [
    "pypi" + ".org",
    "python" + "hosted.org",
    "download." + "pytorch.org",
    "-index" + "-url",
]


def files(*folders: str, suffix: str = "") -> Iterator[Path]:
    for folder in folders:
        for path in (ROOT / folder).rglob(f"*{suffix}"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def words(text: str) -> set[str]:
    """Lower-case words of a source file, identifiers taken apart at underscores and capitals."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)}


def test_words_come_apart():
    assert words("class OPSDTrainer: grpo_loss, 'Dr. GRPO', spaced, GkdLoss = 1") >= {
        *("opsd", "trainer", "grpo", "loss", "spaced", "gkd"),
    }
    assert "paced" not in words("spaced")


def test_core_names_no_method():
    found = {
        f"{path.relative_to(ROOT)}: {word}"
        for path in files("opd", suffix=".py")
        for word in words(path.read_text()) & METHODS
    }
    assert not found, "a method is a recipe; name what the code does instead"


def test_no_file_is_a_landfill():
    python = list(files("opd", "rewards", "data", "scripts", "tests", suffix=".py"))
    assert python
    assert not [path for path in python if set(path.stem.split("_")) & LANDFILLS]


def test_no_file_holds_a_trace_of_a_machine():
    found = set()
    for path in (*files(*FOLDERS), *(ROOT / name for name in TOP_LEVEL if "." in name[1:])):
        try:
            text = path.read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        found |= {f"{path.relative_to(ROOT)}: {trace}" for trace in TRACES if trace in text}
    assert not found


def test_top_level_holds_the_prescribed_names_only():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in listed.stdout.splitlines()} <= TOP_LEVEL
