"""All that a run needs to go on, saved so that no crash can leave it without a checkpoint."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from opd.errors import DataError, OpdError, RecipeError, first_line
from opd.rows import sha256_of
from opd.tree import first_difference, read_yaml, write_yaml

SCHEMA = 2
LIBRARIES = ("opd", "torch", "transformers", "accelerate", "peft", "numpy", "safetensors")
MANIFEST = "MANIFEST.json"
WEIGHTS = "weights.safetensors"

logger = logging.getLogger(__name__)

State = Mapping[str, Mapping[str, object]]
"""Name of a stateful part to its state: tensors, numbers, strings, None, lists, tuples, dicts."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint read back."""

    step: int
    state: dict[str, dict[str, object]]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint folder must hold, byte for byte."""

    schema: int
    step: int
    recipe: str
    """SHA-256 of the resolved recipe."""
    versions: dict[str, str]
    files: dict[str, dict[str, int | str]]
    """File name to its size in bytes and SHA-256."""


@contextmanager
def claim(output: Path, recipe: Mapping[str, object]) -> Iterator[None]:
    """Hold the run folder `output` for this process alone and keep the resolved recipe in it.

    Raises RecipeError when another process holds it, when it belongs to another recipe, or when it
    holds files that are no run.
    """
    _refuse_foreign(output)
    output.mkdir(parents=True, exist_ok=True)
    path = output / ".lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RecipeError(
            f"{output}: another run writes here ({path.read_text() or 'its process is starting'}); "
            f"wait for it, stop it, or give this run another `output=`"
        ) from error
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        _keep_recipe(output, recipe)
        yield
    finally:
        lock.release()


class Checkpoints:
    """The checkpoints of one run: `folder/step-000050/`, the newest `keep` of them."""

    def __init__(self, folder: Path, recipe: Mapping[str, object], keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep
        self.recipe_hash = _recipe_hash(recipe)

    def save(self, step: int, state: State, weights: Mapping[str, Tensor]) -> Path:
        """Write a checkpoint and drop the oldest; a step that is saved already stays as it is.

        Raises OpdError when the disk refuses; older checkpoints stay as they are.
        """
        _check_plain(state, "state")
        final = self._path(step)
        if not final.exists():
            self._write(final, step, state, weights)
        self._prune()
        return final

    def latest(self) -> int | None:
        """The newest step whose files are all as they were written, None when there is none.

        A damaged checkpoint is reported, renamed `*.bad` and passed over.
        """
        for step in sorted(self._steps(), reverse=True):
            path = self._path(step)
            fault = find_fault(path)
            if fault is None:
                self._refuse_other_run(path)
                return step
            bad = _free_name(path)
            path.rename(bad)
            logger.warning("%s: %s; kept as %s and passed over", path, fault, bad.name)
        return None

    def drop_from(self, step: int) -> None:
        """Remove the checkpoints of `step` and later ones."""
        for later in self._steps():
            if later >= step:
                shutil.rmtree(self._path(later))

    def load(self, step: int) -> Saved:
        """Read the checkpoint of `step` back, tensors on the CPU; DataError when it is damaged."""
        path = self._path(step)
        fault = find_fault(path)
        if fault is not None:
            raise DataError(f"{path}: {fault}; resume from another checkpoint")
        self._refuse_other_run(path)
        _warn_of_versions(path)
        state = {
            file.stem: cast("dict[str, object]", torch.load(file, weights_only=True))
            for file in sorted(path.glob("*.pt"))
        }
        return Saved(step, state, load_file(path / WEIGHTS))

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def _steps(self) -> list[int]:
        names = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return [int(name) for name in names if name.isdigit()]

    def _write(self, final: Path, step: int, state: State, weights: Mapping[str, Tensor]) -> None:
        staging = self.folder / f".tmp-step-{step}-{os.getpid()}"
        try:
            staging.mkdir(parents=True)
            self._fill(staging, step, state, weights)
            staging.rename(final)
            _sync(self.folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise OpdError(
                f"{final}: the checkpoint cannot be written ({first_line(error)}); free some disk "
                f"or lower checkpoint.keep, then run the same command to go on from the last one"
            ) from error

    def _fill(self, staging: Path, step: int, state: State, weights: Mapping[str, Tensor]) -> None:
        save_file(_separate(weights), staging / WEIGHTS)
        for name, part in state.items():
            torch.save(dict(part), staging / f"{name}.pt")
        files = {file.name: _measure(file) for file in sorted(staging.iterdir())}
        manifest = Manifest(SCHEMA, step, self.recipe_hash, library_versions(), files)
        (staging / MANIFEST).write_text(_sealed(asdict(manifest)))
        for file in staging.iterdir():
            _sync(file)
        _sync(staging)

    def _prune(self) -> None:
        """Drop what is older than the newest `keep`, and what crashed saves have left behind."""
        stale = [self._path(step) for step in sorted(self._steps())[: -self.keep]]
        for path in [*stale, *self.folder.glob(".tmp-step-*")]:
            shutil.rmtree(path, ignore_errors=True)

    def _refuse_other_run(self, path: Path) -> None:
        if _manifest(path).recipe != self.recipe_hash:
            raise RecipeError(
                f"{path}: written by a run of another recipe; give this run another `output=`, "
                f"or delete the checkpoint"
            )


def find_fault(path: Path) -> str | None:
    """What is wrong with the checkpoint folder `path`, None when every byte is as written.

    Raises DataError when it was written in another format.
    """
    try:
        listed = _manifest(path).files
        stored = {file.name for file in path.iterdir()} - {MANIFEST}
        wrong = sorted(stored ^ set(listed))
        wrong += [name for name in stored & set(listed) if _measure(path / name) != listed[name]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be trusted ({first_line(error)})"
    return f"missing, added or changed since it was written: {', '.join(wrong)}" if wrong else None


def random_state() -> dict[str, object]:
    """The state of every random generator: Python, numpy, torch, and each CUDA device."""
    kind, keys, position, has_gauss, cached = cast(
        "tuple[str, np.ndarray, int, int, float]", np.random.get_state(legacy=True)
    )
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, object]) -> None:
    """Set every random generator to what `random_state` read."""
    random.setstate(cast("tuple[object, ...]", state["python"]))
    kind, keys, position, has_gauss, cached = cast(
        "tuple[str, Tensor, int, int, float]", state["numpy"]
    )
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(cast("Tensor", state["torch"]))
    devices = cast("list[Tensor]", state["cuda"])
    if devices and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(devices)


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that decide a run's numbers."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _refuse_foreign(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise RecipeError(f"{output}: is a file; give another `output=`")
    if (output / "recipe.yaml").exists() or not output.exists():
        return
    others = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    if others:
        raise RecipeError(
            f"{output}: holds files that are no run of this program ({', '.join(others[:3])}); "
            f"give another `output=`"
        )


def _keep_recipe(output: Path, recipe: Mapping[str, object]) -> None:
    """Write recipe.yaml into a new run folder; raise RecipeError when it holds another recipe."""
    path = output / "recipe.yaml"
    text = write_yaml(dict(recipe))
    if not path.exists():
        staging = output / ".recipe.yaml"
        staging.write_text(text)
        _sync(staging)
        staging.rename(path)
        return
    then, now = read_yaml(path.read_text(), str(path)), read_yaml(text, "the recipe")
    difference = first_difference(_without_output(then), _without_output(now))
    if difference is not None:
        key, then, now = difference
        raise RecipeError(
            f"{output}: holds a run with {key}={then}, and this one has {key}={now}; "
            f"give another `output=`, or delete the folder"
        )


def _without_output(recipe: object) -> object:
    """A moved folder holds the same run, so `output` does not tell runs apart."""
    if not isinstance(recipe, Mapping):
        return recipe
    return {key: value for key, value in recipe.items() if key != "output"}


def _recipe_hash(recipe: Mapping[str, object]) -> str:
    text = json.dumps(_without_output(recipe), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _warn_of_versions(path: Path) -> None:
    """Say which libraries changed since `path` was written: the numbers may differ a little."""
    then, now = _manifest(path).versions, library_versions()
    changed = [f"{n} {then.get(n)} -> {now[n]}" for n in now if then.get(n) != now[n]]
    if changed:
        logger.warning("%s: resumed with other libraries (%s)", path, ", ".join(changed))


def _sealed(fields: Mapping[str, object]) -> str:
    """The text of a manifest, its own SHA-256 included."""
    seal = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
    return json.dumps({**fields, "seal": seal}, indent=1)


def _manifest(path: Path) -> Manifest:
    """Read a manifest; ValueError when any byte of it has changed."""
    text = (path / MANIFEST).read_text()
    fields = json.loads(text)
    fields.pop("seal")
    if _sealed(fields) != text:
        raise ValueError("it has changed since it was written")
    if fields["schema"] != SCHEMA:
        raise DataError(
            f"{path}: written in format {fields['schema']}, and this version reads {SCHEMA}; "
            f"resume with the libraries that wrote it ({fields['versions']})"
        )
    return Manifest(**fields)


def _measure(file: Path) -> dict[str, int | str]:
    return {"size": file.stat().st_size, "sha256": sha256_of(file)}


def _sync(path: Path) -> None:
    """Make the file or folder `path` outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _separate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no storage, as the file format asks (tied embeddings)."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return separate


def _check_plain(value: object, where: str) -> None:
    """Raise TypeError for what `torch.load(weights_only=True)` would refuse to read back."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}.{index}")
    elif type(value) not in (Tensor, torch.nn.Parameter, bool, int, float, str, type(None)):
        raise TypeError(f"{where} is a {type(value).__name__}, which no checkpoint can hold")


def _free_name(path: Path) -> Path:
    """`path` with .bad, or .bad-2, .bad-3 ... when that is taken."""
    candidate, count = path.with_name(f"{path.name}.bad"), 1
    while candidate.exists():
        count += 1
        candidate = path.with_name(f"{path.name}.bad-{count}")
    return candidate
