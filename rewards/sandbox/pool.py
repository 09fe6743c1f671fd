"""Many calls at a time, but not too many."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_bounded(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int | None = None
) -> list[Result]:
    """`function` of each item, in order, `workers` at a time (as many as there are cores)."""
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), "sandbox-pool") as pool:
        return list(pool.map(function, items))
