"""Numbers that change with training. Steps count optimizer updates from 0."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from opd.config import part


class Schedule(ABC):
    """A number for every step of a run."""

    moment: tuple[int, int] = (0, 1)
    """Step and steps, as last told."""

    @property
    def now(self) -> float:
        """The value at the moment that it was last told: for parts that are not given the step."""
        return self.at(*self.moment)

    @abstractmethod
    def at(self, step: int, steps: int) -> float:
        """The value at update `step` (from 0) of a run of `steps` updates."""

    @classmethod
    def from_number(cls, value: float) -> Schedule:
        """What a plain number in a recipe stands for."""
        return Constant(value=value)


class Between(NamedTuple):
    """What a schedule must never leave: beside its type, `Annotated[Schedule, Between(0)]`."""

    low: float
    high: float = math.inf


@part
class Constant(Schedule):
    """Always the same."""

    value: float

    def at(self, step: int, steps: int) -> float:
        return self.value


@part
class Linear(Schedule):
    """A straight line from `start` at step 0 to `end` at step `steps`, then flat."""

    start: float
    end: float
    steps: Annotated[int, Field(gt=0)] | None = None
    """null for the length of the run."""

    def at(self, step: int, steps: int) -> float:
        passed = min(1.0, step / (self.steps or steps))
        return self.start + passed * (self.end - self.start)


@part
class Warmup(Schedule):
    """Rises to `peak` over `warmup_steps`, the first of which is not 0, then decays to the end."""

    peak: float
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    end_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of `peak` to which it decays by the end of the run."""

    def at(self, step: int, steps: int) -> float:
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        passed = min(1.0, (step - self.warmup_steps) / max(1, steps - self.warmup_steps))
        left = {
            "constant": 1.0,
            "linear": 1 - passed,
            "cosine": (1 + math.cos(math.pi * passed)) / 2,
        }
        return self.peak * (self.end_fraction + (1 - self.end_fraction) * left[self.decay])


@part
class Switch(Schedule):
    """`values[0]` at first, `values[i]` from step `at_steps[i - 1]` on."""

    values: tuple[float, ...]
    at_steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.at_steps) + 1:
            raise ValueError("Switch needs one value more than at_steps")
        if list(self.at_steps) != sorted(set(self.at_steps)):
            raise ValueError("Switch needs at_steps in rising order")

    def at(self, step: int, steps: int) -> float:
        return self.values[bisect_right(self.at_steps, step)]
