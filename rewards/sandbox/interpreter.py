"""Where the Python that runs us lives, and what of it a box needs to run it too."""

from __future__ import annotations

import os
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from opd.errors import SandboxError

SHARED = Path("/usr")
"""Bound in every box, so that nothing below it needs a place of its own."""


@dataclass(frozen=True)
class Interpreter:
    """Paths are the same inside a box as outside."""

    executable: str
    target: str
    """What `executable` is, links followed."""
    places: tuple[str, ...]
    """Folders and files to show read-only: the standard library and installed packages."""


@cache
def interpreter() -> Interpreter:
    """Raises SandboxError when Python does not know where it lives."""
    if not sys.executable:
        raise SandboxError("Python does not know its own path, so no box can run it")
    target = os.path.realpath(sys.executable)
    places: dict[str, None] = {target: None}
    for prefix in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix)):
        for base in dict.fromkeys((prefix, os.path.realpath(prefix))):
            places |= dict.fromkeys(f"{base}/{name}" for name in ("lib", "lib64"))
    if sys.prefix != sys.base_prefix:
        places |= dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        places[f"{sys.prefix}/pyvenv.cfg"] = None
    found = tuple(place for place in places if needs_place(Path(place)))
    return Interpreter(os.path.abspath(sys.executable), target, found)


def needs_place(path: Path) -> bool:
    return path.exists() and not path.is_relative_to(SHARED)
