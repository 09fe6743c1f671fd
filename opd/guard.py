"""What a run's numbers must not do, and what happens when they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from opd.config import part

Action = Literal["warn", "stop", "roll_back"]


@part
class Limit:
    """Bounds of one number: a metric of the updates such as `entropy`, or `benchmark/name` of the
    evaluations such as `held_out/sampled`."""

    metric: str
    least: float | None = None
    most: float | None = None
    against: Literal["nothing", "difference", "ratio"] = "nothing"
    """What the bounds are of: the number itself, what it has moved from an earlier reading, or how
    many times an earlier reading it is."""
    reading: Literal["first", "best"] = "first"
    """The earlier one: the first, or the best so far, which is the highest where `least` is set and
    the lowest where `most` is."""
    patience: Annotated[int, Field(gt=0)] = 1
    """Readings in a row outside before anything happens."""
    then: Action = "warn"

    def __post_init__(self) -> None:
        if self.least is None and self.most is None:
            raise ValueError("a limit needs least, most or both")
        if self.reading == "best" and (None not in (self.least, self.most)):
            raise ValueError("the best reading is the highest or the lowest; set least or most")
        if self.reading == "best" and self.against == "nothing":
            raise ValueError("a limit against nothing reads no best; set against")

    def measured(self, value: float, earlier: float) -> float:
        """What the bounds are of."""
        if self.against == "nothing":
            return value
        if self.against == "difference":
            return value - earlier
        # 0 has stayed what it was.
        return 1.0 if value == earlier else value / max(earlier, 1e-12)

    def kept(self, earlier: float, value: float) -> float:
        """The reading that the next one is compared with."""
        is_better = value < earlier if self.least is None else value > earlier
        return value if self.reading == "best" and is_better else earlier

    def is_kept(self, measured: float) -> bool:
        """Whether it lies within; what is no number does not."""
        above = self.least is None or measured >= self.least
        below = self.most is None or measured <= self.most
        return above and below


@dataclass(frozen=True)
class Breach:
    """A limit that was not kept for as long as its patience."""

    sentence: str
    then: Action


@part
class Guard:
    """Watches over limits. Ours."""

    limits: dict[str, Limit] = field(default_factory=dict)
    learning_rate_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Multiplies the learning rate each time that the run goes back."""
    rollbacks: Annotated[int, Field(ge=0)] = 2
    """How often a run goes back before it stops instead."""
    earlier: dict[str, float] = field(init=False, default_factory=dict, repr=False, compare=False)
    """Limit to the reading that its metric is compared with."""
    outside: dict[str, int] = field(init=False, default_factory=dict, repr=False, compare=False)
    """Limit to the readings in a row that were outside."""
    rolled_back: int = field(init=False, default=0, repr=False, compare=False)

    @property
    def keeps_good(self) -> bool:
        """Whether a state to go back to is kept."""
        return any(limit.then != "warn" for limit in self.limits.values())

    @property
    def is_calm(self) -> bool:
        """Whether no number was outside when it was last read."""
        return not any(self.outside.values())

    def unread(self) -> list[str]:
        """The limits whose metric has never been read."""
        return [name for name in self.limits if name not in self.earlier]

    def read(self, readings: Mapping[str, float]) -> list[Breach]:
        """Take the readings of a moment in; the limits whose patience is at an end."""
        breaches = []
        for name, limit in self.limits.items():
            if limit.metric not in readings:
                continue
            value = readings[limit.metric]
            earlier = self.earlier.setdefault(name, value)
            measured = limit.measured(value, earlier)
            self.outside[name] = 0 if limit.is_kept(measured) else self.outside.get(name, 0) + 1
            if self.outside[name] >= limit.patience:
                breaches.append(Breach(self.sentence(name, value, measured), limit.then))
            self.earlier[name] = limit.kept(earlier, value)
        return breaches

    def sentence(self, name: str, value: float, measured: float) -> str:
        """What is outside, and of what."""
        limit, earlier = self.limits[name], self.earlier[name]
        about = {
            "nothing": "",
            "difference": f", {measured:+.4g} from {earlier:.4g} at {limit.reading}",
            "ratio": f", {measured:.3g} times {earlier:.4g} at {limit.reading}",
        }[limit.against]
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (("at least", limit.least), ("at most", limit.most))
            if bound is not None
        ]
        times = f" {self.outside[name]} times in a row" if limit.patience > 1 else ""
        return (
            f"guard.limits.{name}: {limit.metric} is {value:.4g}{about}, outside its limit of "
            f"{' and '.join(bounds)}{times}"
        )

    def state_dict(self) -> dict[str, Any]:
        state = {"earlier": dict(self.earlier), "outside": dict(self.outside)}
        return {**state, "rolled_back": self.rolled_back}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.earlier, self.outside = dict(state["earlier"]), dict(state["outside"])
        self.rolled_back = state["rolled_back"]
