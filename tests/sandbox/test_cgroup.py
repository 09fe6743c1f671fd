"""Control groups of both versions, on folders that look like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rewards.sandbox import cgroup
from rewards.sandbox.cgroup import OVERHEAD_MEMORY, OVERHEAD_PROCESSES, PREFIX, Groups
from rewards.sandbox.limits import Limits

LIMITS = Limits(memory=100 << 20, processes=10)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    return tmp_path


def belongs_to(paths: dict[str, str], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cgroup, "own_paths", lambda: paths)


def test_version_2_stands_beside_its_own_group(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    belongs_to({"": "/slice/own"}, monkeypatch)
    (root / "slice" / "own").mkdir(parents=True)
    (root / "cgroup.controllers").touch()
    (root / "slice" / "cgroup.procs").touch()
    switched_on = root / "slice" / "cgroup.subtree_control"
    assert cgroup.version_2() is None
    switched_on.write_text("cpu memory\n")
    assert cgroup.version_2() is None, "without pids nothing bounds the processes"
    switched_on.write_text("cpu memory pids\n")
    assert cgroup.version_2() == (root / "slice",)
    belongs_to({"": "/"}, monkeypatch)
    assert cgroup.version_2() is None, "the root switches nothing on"
    belongs_to({"memory": "/", "pids": "/"}, monkeypatch)
    assert cgroup.version_2() is None


def test_version_2_limits_one_folder(tmp_path: Path) -> None:
    groups = Groups((tmp_path,), os.getpid())
    (tmp_path / f"{PREFIX}{os.getpid()}-0").mkdir()
    folder = groups.take(LIMITS).folders[0]
    assert int((folder / "memory.max").read_text()) == LIMITS.memory + OVERHEAD_MEMORY
    assert int((folder / "pids.max").read_text()) == LIMITS.processes + OVERHEAD_PROCESSES
    assert groups.made[0].entries == [str(folder / "cgroup.procs")]


def test_version_1_limits_two_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container its own path may be the host's, and the mount shows its group as the root."""
    belongs_to({"memory": "/box", "pids": "/not/here"}, monkeypatch)
    for place in (root / "memory" / "box", root / "pids"):
        place.mkdir(parents=True)
        (place / "cgroup.procs").touch()
    parents = cgroup.version_1()
    assert parents == (root / "memory" / "box", root / "pids")
    assert parents is not None
    group = Groups(parents, os.getpid()).take(LIMITS)
    in_memory, in_pids = group.folders
    memory = LIMITS.memory + OVERHEAD_MEMORY
    assert int((in_memory / "memory.limit_in_bytes").read_text()) == memory
    assert int((in_pids / "pids.max").read_text()) == LIMITS.processes + OVERHEAD_PROCESSES
    assert group.entries == [str(in_memory / "tasks"), str(in_pids / "tasks")]


def test_what_the_killed_have_left_is_removed(tmp_path: Path) -> None:
    gone, here = (tmp_path / f"{PREFIX}{owner}-0" for owner in (2**30, os.getpid()))
    gone.mkdir()
    here.mkdir()
    cgroup.sweep((tmp_path,))
    assert here.exists() and not gone.exists()
