"""Runs programs that nobody trusts: bounded in time, memory and output, far from the host."""

from rewards.sandbox.isolation import Isolation, Otherwise, isolation
from rewards.sandbox.pool import map_bounded
from rewards.sandbox.running import Limits, Outcome, Running, run, start

__all__ = [
    "Isolation",
    "Limits",
    "Otherwise",
    "Outcome",
    "Running",
    "isolation",
    "map_bounded",
    "run",
    "start",
]
