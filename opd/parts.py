"""Every part of a recipe, found by walking it: what holds state, learns from progress or moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, cast, runtime_checkable

from opd.errors import DataError
from opd.objective.schedule import Schedule
from opd.privileged import Group
from opd.tree import is_list, is_mapping, joined
from opd.types import Update


@runtime_checkable
class Stateful(Protocol):
    """A part that changes while it is trained with; its state is the same on all ranks."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, texts, None, and lists, tuples and dicts of them."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`, bit for bit."""
        ...


@runtime_checkable
class Observer(Protocol):
    """A part that learns from progress."""

    def observe(self, update: Update, groups: Sequence[Group]) -> None:
        """Once after each step: what its updates did together, over all ranks, and this rank's
        rollouts. What it keeps must be the same on all ranks: gather what it takes of `groups`."""
        ...


def parts(value: object) -> Iterator[tuple[str, object]]:
    """(YAML path, part) of `value` and of all within it; what stands in two places comes once."""
    seen: set[int] = set()
    for where, found in places(value, ""):
        if id(found) not in seen:
            seen.add(id(found))
            yield where, found


def places(value: object, where: str) -> Iterator[tuple[str, object]]:
    """(YAML path, part) of `value`, which stands at `where`, and of all within it."""
    if is_dataclass(value) and not isinstance(value, type):
        yield where, value
        entries = [(item.name, getattr(value, item.name)) for item in fields(value) if item.init]
    elif is_mapping(value):
        entries = list(value.items())
    elif is_list(value) or isinstance(value, tuple):
        entries = list(enumerate(value))
    else:
        return
    for key, item in entries:
        yield from places(item, joined(where, key))


def tell(value: object, step: int, steps: int) -> None:
    """Move every schedule within `value` to update `step` (from 0) of `steps`."""
    for _, part in parts(value):
        if isinstance(part, Schedule):
            part.moment = step, steps


def observe(value: object, update: Update, groups: Sequence[Group]) -> None:
    """Show every observer within `value` what a step did."""
    for _, part in parts(value):
        if isinstance(part, Observer):
            part.observe(update, groups)


def state_of(value: object) -> dict[str, dict[str, Any]]:
    """YAML path to state of every part within `value` that holds some."""
    return {where: part.state_dict() for where, part in parts(value) if isinstance(part, Stateful)}


def restore_state(value: object, state: Mapping[str, object]) -> None:
    """Undo `state_of`. Raises DataError when other parts hold state now than then."""
    holders = {where: part for where, part in parts(value) if isinstance(part, Stateful)}
    for where in sorted(holders.keys() ^ state.keys()):
        then, now = ("state", "none") if where in state else ("no state", "some")
        raise DataError(
            f"{where}: the checkpoint holds {then} of it, and this version keeps {now}; give "
            "another `output=`, or resume with the version that wrote it"
        )
    for where, part in holders.items():
        part.load_state_dict(cast("Mapping[str, Any]", state[where]))
