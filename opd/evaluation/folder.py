"""The folder of an evaluation: one protocol, one process at a time, nothing written over."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from opd.errors import DataError, RecipeError
from opd.rows import finite, replace_file
from opd.tree import first_difference

PROTOCOL = "protocol.json"


@contextmanager
def claimed(folder: Path, protocol: Mapping[str, Any]) -> Iterator[None]:
    """Hold `folder` for this process alone, with its protocol in it."""
    refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RecipeError(
            f"{folder}: another evaluation writes here; wait for it, stop it, or give another --to"
        ) from error
    try:
        keep_protocol(folder / PROTOCOL, protocol)
        yield
    finally:
        lock.release()


def refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{folder}: is a file; give another --to")
    if not folder.exists() or (folder / PROTOCOL).exists():
        return
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if others:
        raise RecipeError(
            f"{folder}: holds files that are no evaluation ({', '.join(others[:3])}); "
            "give another --to"
        )


def keep_protocol(path: Path, protocol: Mapping[str, Any]) -> None:
    if not path.exists():
        replace_file(path, json.dumps(protocol, indent=1) + "\n")
        return
    try:
        then = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: is no JSON ({error}); give another --to") from error
    difference = first_difference(then, dict(protocol))
    if difference is not None:
        key, before, now = difference
        raise RecipeError(
            f"{path.parent}: holds an evaluation with {key}={before}, and this one has "
            f"{key}={now}; give another --to, or delete the folder"
        )


def write_once(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON at once or not at all; what stands there already is left as it is."""
    if not path.exists():
        replace_file(path, json.dumps(finite(content), indent=1, ensure_ascii=False) + "\n")
