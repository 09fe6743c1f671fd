"""Files that outlast a kill: JSON Lines, and what is replaced whole; and the hash of a file."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

from opd.errors import DataError, OpdError

Row = dict[str, object]

logger = logging.getLogger(__name__)


class Rows:
    """A JSON Lines file that goes on where a run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = 0
        """Rows of earlier steps are kept; 0 when the run starts afresh."""
        self._measured: set[tuple[object, object]] = set()
        self._file: TextIO | None = None

    def add(self, row: Row) -> None:
        """Append `row`, unless it measures a benchmark at a step that was measured already."""
        with writing(self.path):
            file = self._file or self._open()
            if (row["step"], row.get("benchmark")) not in self._measured:
                file.write(json.dumps(finite(row), ensure_ascii=False) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self) -> TextIO:
        old = read_rows(self.path) if self.path.exists() else []
        kept = [row for row in old if cast("int", row["step"]) < self.before]
        self._measured = {(row["step"], row["benchmark"]) for row in kept if "benchmark" in row}
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        replace_file(self.path, text)
        self._file = self.path.open("a", buffering=1, encoding="utf-8")
        return self._file


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON Lines file; a last line that a crash cut off is left out.

    Raises DataError that names the file and the line when it is missing or malformed.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); is this the folder of a run?"
        ) from error
    whole, torn = lines[:-1], lines[-1]
    if torn:
        logger.warning("%s: the last line was cut off and is left out", path)
    return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(whole, 1)]


def _parsed(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: is no JSON ({error}); delete the line") from error
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise DataError(f"{place}: is no object with a whole number `step`; delete the line")
    return row


def replace_file(path: Path, text: str) -> None:
    """Write `path` so that a crash leaves the old file or the new one."""
    staging = path.with_name(f".{path.name}")
    with writing(path), staging.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into one sentence."""
    try:
        yield
    except OSError as error:
        raise OpdError(
            f"{path}: cannot be written ({error.strerror}); free some disk, then run the same "
            f"command to go on from the last checkpoint"
        ) from error


def finite(value: object) -> object:
    """`value` for JSON, which knows no NaN and no infinity: these become null."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
