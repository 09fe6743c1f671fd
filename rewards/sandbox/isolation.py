"""How far programs can be kept away from this machine, proven before the first of them runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tier = Literal["bwrap", "external", "none"]
Otherwise = Literal["refuse", "external", "unsandboxed"]
"""What may stand in where bubblewrap does not work: nothing; a boundary around this whole machine
that the user vouches for; nothing at all, which the environment has to accept as well."""


@dataclass(frozen=True)
class Isolation:
    """What stands between a program and this machine."""

    tier: Tier
    layers: tuple[str, ...]
    """Those that the self-test has proven."""
    sentence: str


def isolation(otherwise: Otherwise = "refuse") -> Isolation:
    return Isolation("bwrap", (), "bubblewrap")
