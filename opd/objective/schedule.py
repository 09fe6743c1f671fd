"""Numbers that change with training. Steps count optimizer updates from 0."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import field
from itertools import accumulate
from statistics import fmean
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from opd.config import part
from opd.errors import RecipeError
from opd.privileged import Group
from opd.types import Update

SMALL = 1e-15
"""Keeps a relative fall from 0 defined (arXiv 2501.16937)."""


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
class Trapezoid(Schedule):
    """Rises from 0 at step 0 to `peak` at step `rise`, and falls over the last `fall` steps so that
    it would be 0 at step `steps`. arXiv 2606.04036."""

    peak: float
    rise: Annotated[int, Field(ge=0)] = 0
    fall: Annotated[int, Field(ge=0)] = 0

    def at(self, step: int, steps: int) -> float:
        risen = min(1.0, step / self.rise) if self.rise else 1.0
        left = min(1.0, (steps - step) / self.fall) if self.fall else 1.0
        return self.peak * risen * left


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


@part
class Steered(Schedule):
    """Grows while a metric exceeds its aim and shrinks while it falls short:
    x <- x exp(rate (metric - aim)). Ours.

    What a metric falls by when x grows is held at its aim, such as the share of tokens above an
    entropy of x."""

    metric: str
    """Such as `anchored/NAME` of a term; a step that does not report it changes nothing."""
    aim: float
    start: Annotated[float, Field(gt=0)]
    rate: Annotated[float, Field(gt=0)] = 1.0
    value: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.value = self.start

    def at(self, step: int, steps: int) -> float:
        """The value by what it has seen, whatever the step."""
        return self.value

    def observe(self, update: Update, groups: Sequence[Group]) -> None:
        """Once after each step."""
        if self.metric in update.metrics:
            self.value *= math.exp(self.rate * (update.metrics[self.metric] - self.aim))

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.value = state["value"]


@part
class Adaptive(Schedule):
    """Rises from `start` to `end`, faster while a metric m falls, never below the straight line:
    x <- min(end, max(line, x + rate sigmoid(c) (1 - x))), c <- momentum c + (1 - momentum) d with
    the relative fall d = (last m - m) / last m. arXiv 2501.16937."""

    metric: str
    """Such as `loss/NAME` of a term; a step that does not report it changes nothing."""
    start: Annotated[float, Field(ge=0, le=1)] = 0.4
    end: Annotated[float, Field(ge=0, le=1)] = 1.0
    rate: Annotated[float, Field(ge=0)] = 5e-4
    """0 leaves the straight line."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    value: float = field(init=False, repr=False, compare=False)
    fall: float = field(init=False, default=0.0, repr=False, compare=False)
    """c."""
    last: float | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError("Adaptive never falls; set its end to its start or above")
        self.value = self.start

    def at(self, step: int, steps: int) -> float:
        """The value by what it has seen, whatever the step."""
        return self.value

    def observe(self, update: Update, groups: Sequence[Group]) -> None:
        """Once after each step."""
        if self.metric not in update.metrics:
            return
        last, self.last = self.last, update.metrics[self.metric]
        if last is None:
            return
        fall = (last - self.last) / (last + SMALL)
        self.fall = self.momentum * self.fall + (1 - self.momentum) * fall
        rise = self.rate * (1 - self.value) / (1 + math.exp(-self.fall))
        line = self.start + (self.end - self.start) * update.step / self.moment[1]
        self.value = min(self.end, max(line, self.value + rise))

    def state_dict(self) -> dict[str, float | None]:
        return {"value": self.value, "fall": self.fall, "last": self.last}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.value, self.fall, self.last = state["value"], state["fall"], state["last"]


@part
class Alternate(Schedule):
    """`values[0]` for `lengths[0]` steps, then `values[1]` for `lengths[1]`, and so on, round and
    round."""

    values: tuple[float, ...]
    lengths: tuple[Annotated[int, Field(gt=0)], ...]
    """Steps."""

    def __post_init__(self) -> None:
        if len(self.values) != len(self.lengths) or not self.values:
            raise ValueError("Alternate needs as many values as lengths, and at least one")

    def at(self, step: int, steps: int) -> float:
        ends = list(accumulate(self.lengths))
        return self.values[bisect_right(ends, step % ends[-1])]


@part
class Hysteresis(Schedule):
    """`value` while a metric is high, 0 from where it falls below `off` times what it was at first
    until it is back at `on` times that. arXiv 2605.11609."""

    value: float
    metric: str
    """Of an update, such as teacher_entropy/solution."""
    settle: Annotated[int, Field(gt=0)] = 10
    """Steps whose mean is what the metric was at first."""
    off: Annotated[float, Field(gt=0)] = 0.93
    on: Annotated[float, Field(gt=0)] = 1.0
    first: list[float] = field(init=False, default_factory=list[float], repr=False, compare=False)
    is_on: bool = field(init=False, default=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.on < self.off:
            raise ValueError("Hysteresis goes on where it is at least as high as where it goes off")

    def at(self, step: int, steps: int) -> float:
        return self.value if self.is_on else 0.0

    def observe(self, update: Update, groups: Sequence[Group]) -> None:
        """Raises RecipeError when an update that learned from tokens reports nothing of what the
        metric is of; a view that no response had changes nothing."""
        if self.metric not in update.metrics:
            about = self.metric.rpartition("/")[2]
            if update.tokens and about not in {name.rpartition("/")[2] for name in update.metrics}:
                known = ", ".join(sorted(update.metrics))
                raise RecipeError(
                    f"Hysteresis: no update reports {self.metric!r}; name one of these: {known}"
                )
            return
        found = update.metrics[self.metric]
        if len(self.first) < self.settle:
            self.first.append(found)
            return
        share = found / fmean(self.first)
        self.is_on = share >= (self.off if self.is_on else self.on)

    def state_dict(self) -> dict[str, Any]:
        return {"first": list(self.first), "is_on": self.is_on}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first, self.is_on = list(state["first"]), state["is_on"]
