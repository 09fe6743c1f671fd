"""Checkpoints: never torn, never trusted when changed, exactly what was saved, one run a folder."""

from __future__ import annotations

import os
import pathlib
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from opd.errors import DataError, OpdError, RecipeError
from opd.learner import checkpoint
from opd.learner.checkpoint import (
    MANIFEST,
    Checkpoints,
    claim,
    find_fault,
    random_state,
    restore_random_state,
)

RECIPE: dict[str, object] = {
    "model": {"path": "m"},
    "terms": {"distill": {"weights": [1, 2]}},
    "steps": 4,
    "output": "runs/x",
}


def contents(
    step: int, size: int = 3
) -> tuple[dict[str, dict[str, object]], dict[str, torch.Tensor]]:
    """State and weights that tell the step they belong to."""
    generator = torch.Generator().manual_seed(step)
    weights = {"w": torch.randn(size, 4, generator=generator), "b": torch.full((2,), float(step))}
    optimizer: dict[str, object] = {"state": {0: {"step": torch.tensor(step), "m": weights["w"]}}}
    return {"optimizer": optimizer, "cursor": {"epoch": 1, "position": step}}, weights


def equal(found: object, expected: object) -> bool:
    if isinstance(expected, torch.Tensor):
        return isinstance(found, torch.Tensor) and torch.equal(found, expected)
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(equal(found[key], expected[key]) for key in expected)
        )
    return found == expected


def assert_holds(checkpoints: Checkpoints, step: int) -> None:
    saved = checkpoints.load(step)
    state, weights = contents(step)
    assert saved.step == step and equal(saved.weights, weights) and equal(saved.state, state)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, RECIPE)
    assert checkpoints.latest() is None
    for step in (5, 10):
        checkpoints.save(step, *contents(step))
    assert checkpoints.latest() == 10
    assert_holds(checkpoints, 10)
    assert_holds(checkpoints, 5)


def test_the_newest_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, RECIPE, keep=2)
    (tmp_path / ".tmp-step-1-99").mkdir()
    for step in (1, 2, 3, 1_000_000):
        checkpoints.save(step, *contents(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000003", "step-1000000"]
    assert checkpoints.latest() == 1_000_000


def test_tied_and_sliced_weights_come_back(tmp_path: Path) -> None:
    table = torch.arange(12.0, dtype=torch.bfloat16).reshape(4, 3)
    weights = {"embed": table, "head": table, "row": table[1], "turned": table.T}
    checkpoints = Checkpoints(tmp_path, RECIPE)
    checkpoints.save(1, {}, weights)
    assert equal(checkpoints.load(1).weights, weights)


def test_state_that_would_need_pickle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\.part\.a\.1 is a PurePosixPath"):
        Checkpoints(tmp_path, RECIPE).save(1, {"part": {"a": [1, pathlib.PurePath("x")]}}, {})
    assert not list(tmp_path.iterdir())


def test_random_generators_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, list[float]]:
        return random.random(), float(np.random.standard_normal()), torch.rand(3).tolist()

    draw()
    checkpoints = Checkpoints(tmp_path, RECIPE)
    checkpoints.save(1, {"random": random_state()}, {})
    expected = [draw(), draw()]
    restore_random_state(checkpoints.load(1).state["random"])
    assert [draw(), draw()] == expected


# Crashes: a forked child runs a real save and dies at one system-facing call, with the file that
# the call writes whole, half written or not yet there.


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; 0 when it returns, 1 when it raises, else how it died."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tear(path: object) -> None:
    """Halve the file `path`, as a crash in the middle of writing it does."""
    if isinstance(path, Path) and path.is_file():
        os.truncate(path, path.stat().st_size // 2)


NAMED_POINTS = [
    (pathlib.Path, "mkdir"),
    (checkpoint, "save_file"),
    (torch, "save"),
    (pathlib.Path, "write_text"),
    (os, "fsync"),
    (pathlib.Path, "rename"),
    (shutil, "rmtree"),
]


def die_at(call: int, when: str) -> list[str]:
    """Patch the named points so that the process dies at the given call; returns their trace."""
    trace: list[str] = []

    def patch(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: object, **options: object) -> object:
            trace.append(name)
            last = len(trace) == call
            if last and when == "before":
                os._exit(77)
            result = original(*arguments, **options)
            if last:
                if when == "torn":
                    for argument in arguments:
                        tear(argument)
                os._exit(77)
            return result

        setattr(owner, name, wrapped)

    for owner, name in NAMED_POINTS:
        patch(owner, name)
    return trace


def test_a_crash_at_any_point_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    first = tmp_path / "first"
    Checkpoints(first, RECIPE, keep=1).save(1, *contents(1))
    outcomes: dict[int, int] = {}
    reached = 0
    for when in ("before", "torn", "after"):
        call, died = 0, True
        while died:
            call += 1
            folder = tmp_path / f"{when}-{call}"
            shutil.copytree(first, folder)

            def work(call: int = call, when: str = when, folder: Path = folder) -> None:
                die_at(call, when)
                Checkpoints(folder, RECIPE, keep=1).save(2, *contents(2))

            code = in_child(work)
            died = code == 77
            assert died or code == 0
            checkpoints = Checkpoints(folder, RECIPE, keep=1)
            step = checkpoints.latest()
            assert step in (1, 2) and not list(folder.glob("*.bad")), (when, call)
            assert_holds(checkpoints, step)
            if not died:
                continue
            reached += 1
            outcomes[step] = outcomes.get(step, 0) + 1
            checkpoints.save(2, *contents(2))
            assert_holds(checkpoints, 2)
            assert [p.name for p in folder.iterdir()] == ["step-000002"]
    assert reached >= 3 * 12 and set(outcomes) == {1, 2}


def test_any_changed_bit_is_found_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path / "run", RECIPE)
    checkpoints.save(1, *contents(1))
    checkpoints.save(2, *contents(2))
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "run", whole)
    bits = random.Random(0)
    files = sorted(p.name for p in (whole / "step-000002").iterdir())
    assert MANIFEST in files and len(files) == 4
    for name in files:
        path = tmp_path / "run" / "step-000002" / name
        data = path.read_bytes()
        for _ in range(100):
            bit = bits.randrange(len(data) * 8)
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            assert find_fault(path.parent) is not None, (name, bit)
        path.write_bytes(data)
        assert find_fault(path.parent) is None
    tear(tmp_path / "run" / "step-000002" / "weights.safetensors")
    with pytest.raises(DataError, match=r"step-000002: .*changed.*weights\.safetensors"):
        checkpoints.load(2)
    assert checkpoints.latest() == 1
    assert_holds(checkpoints, 1)
    assert "step-000002: missing, added or changed since it was written" in caplog.text
    assert (tmp_path / "run" / "step-000002.bad").is_dir()


def damage_missing(path: Path) -> None:
    (path / "optimizer.pt").unlink()


def damage_added(path: Path) -> None:
    (path / "more.pt").write_bytes(b"")


def damage_unlisted(path: Path) -> None:
    (path / MANIFEST).unlink()


def damage_shape(path: Path) -> None:
    (path / MANIFEST).write_text("[]")


@pytest.mark.parametrize("damage", [damage_missing, damage_added, damage_unlisted, damage_shape])
def test_a_damaged_folder_is_set_aside_and_never_deleted(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    checkpoints = Checkpoints(tmp_path, RECIPE)
    for _ in range(2):
        damage(checkpoints.save(1, *contents(1)))
        assert checkpoints.latest() is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001.bad", "step-000001.bad-2"]


def test_another_format_or_recipe_is_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Checkpoints(tmp_path, RECIPE).save(1, *contents(1))
    with pytest.raises(RecipeError, match=r"step-000001: written by a run of another recipe"):
        Checkpoints(tmp_path, {**RECIPE, "steps": 5}).latest()
    assert Checkpoints(tmp_path, {**RECIPE, "output": "elsewhere"}).latest() == 1
    monkeypatch.setattr(checkpoint, "SCHEMA", checkpoint.SCHEMA + 1)
    with pytest.raises(
        DataError, match=r"written in format \d, and this version reads \d; resume with"
    ):
        Checkpoints(tmp_path, RECIPE).latest()
    assert (tmp_path / "step-000001").is_dir()


def test_other_libraries_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, RECIPE)
    checkpoints.save(1, *contents(1))
    checkpoints.load(1)
    assert not caplog.text
    monkeypatch.setattr(checkpoint, "library_versions", lambda: {"torch": "9"})
    checkpoints.load(1)
    assert f"torch {torch.__version__} -> 9" in caplog.text


@pytest.mark.parametrize("limit", [10, 2_000, 60_000])
def test_a_full_disk_is_one_sentence_and_costs_nothing(tmp_path: Path, limit: int) -> None:
    """The kernel refuses to grow files past `limit` bytes: each of the three writers fails once."""
    checkpoints = Checkpoints(tmp_path / "run", RECIPE)
    checkpoints.save(1, *contents(1))
    state, weights = contents(2)
    if limit == 2_000:
        state["optimizer"] = {"m": torch.zeros(5_000)}
    if limit == 60_000:
        weights["w"] = torch.zeros(50_000)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            checkpoints.save(2, state, weights)
        except OpdError as error:
            os._exit(42 if "free some disk" in str(error) and "step-000002" in str(error) else 43)

    assert in_child(work) == 42
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["step-000001"]
    assert checkpoints.latest() == 1
    assert_holds(checkpoints, 1)


# One run a folder.

HOLD = """
import sys, time
from pathlib import Path
from opd.learner.checkpoint import claim
with claim(Path(sys.argv[1]), {"steps": 4}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_into_one_folder_are_refused_until_the_first_dies(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RecipeError, match=rf"another run writes here \(process {holder.pid} on"),
            claim(tmp_path / "run", {"steps": 4}),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
    with claim(tmp_path / "run", {"steps": 4}):
        pass


def test_a_folder_holds_one_recipe(tmp_path: Path) -> None:
    with claim(tmp_path / "run", RECIPE):
        pass
    stored = (tmp_path / "run" / "recipe.yaml").read_bytes()
    with claim(tmp_path / "run", {**RECIPE, "output": "moved"}):
        pass
    for change, message in [
        ({"steps": 5}, r"holds a run with steps=4, and this one has steps=5; give another"),
        ({"model": {}}, r"model\.path=m, and this one has model\.path=nothing"),
        (
            {"terms": {"distill": {"weights": [1, 3]}}},
            r"terms\.distill\.weights\.1=2, and this one has terms\.distill\.weights\.1=3",
        ),
        ({"seed": 1}, r"seed=nothing, and this one has seed=1"),
    ]:
        with (
            pytest.raises(RecipeError, match=message),
            claim(tmp_path / "run", {**RECIPE, **change}),
        ):
            pass
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == stored


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    refused = pytest.raises(RecipeError, match=r"no run of this program \(thesis\.tex\)")
    with refused, claim(tmp_path, RECIPE):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RecipeError, match="is a file"), claim(tmp_path / "thesis.tex", RECIPE):
        pass
