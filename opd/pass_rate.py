"""Where a problem's pass rate comes from: the share of its rollouts that succeed.

Legend: `c` successes among `K` judged rollouts, `a` pseudo-count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from statistics import fmean
from typing import Annotated, Any

from accelerate.utils import gather_object
from pydantic import Field

from opd.config import part
from opd.errors import DataError
from opd.privileged import Group, Problem

Draw = Callable[[Sequence[Problem], int, str], Sequence[Group]]
"""This rank's share of problems with so many rollouts each, judged, drawn on an occasion."""

PseudoCount = Annotated[float, Field(ge=0)]


class PassRates(ABC):
    """A pass rate in [0, 1] for every problem that is trained on."""

    def refresh(self, step: int, problems: Sequence[Problem], draw: Draw) -> None:  # noqa: B027
        """Measure what is due before update `step` (from 0). Called before every step."""

    @abstractmethod
    def of(self, group: Group) -> float:
        """The pass rate of the group's problem."""

    @property
    def known(self) -> tuple[float, ...]:
        """The pass rates of all problems that can be drawn, where they are known beforehand."""
        return ()

    def drawable(self, problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
        """The problems that are worth a rollout, in order. Raises DataError where none is."""
        return problems

    def metrics(self) -> Mapping[str, float]:
        return {}


@part
class OfGroup(PassRates):
    """(c + a) / (K + 2 a) of the very rollouts that are trained on: known only when all are drawn.

    a = 0 is the plain share; with `a` above 0 no problem counts as never or always solved.
    """

    pseudo_count: PseudoCount = 0.0

    def of(self, group: Group) -> float:
        return smoothed(*counts(group), self.pseudo_count)


@part
class Measured(PassRates):
    """(c + a) / (K + 2 a) of K rollouts a problem, drawn for nothing else before the first step.

    arXiv 2603.11178 keeps what was measured once. K, refreshing and `a` are ours.
    """

    rollouts: Annotated[int, Field(gt=0)] = 8
    """K. What they cost counts as generated tokens."""
    pseudo_count: PseudoCount = 0.0
    refresh_every: Annotated[int, Field(gt=0)] | None = None
    """Steps between measurements; null measures once."""
    at_steps: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Steps before which all is measured again, such as where stages change."""
    between: tuple[float, float] | None = None
    """Problems whose pass rate is not strictly between these are not drawn at all; null draws all.
    With [0, 1] those go to which p^a (1 - p)^b gives no weight."""
    rates: dict[str, float] = field(init=False, default_factory=dict, repr=False, compare=False)
    """Problem id to its pass rate."""
    measured_at: int = field(init=False, default=-1, repr=False, compare=False)
    """The step before which `rates` were measured; -1 before any."""

    def refresh(self, step: int, problems: Sequence[Problem], draw: Draw) -> None:
        is_due = not self.rates or step in self.at_steps
        is_due |= self.refresh_every is not None and step % self.refresh_every == 0
        if not is_due or self.measured_at == step:
            return
        drawn = draw(problems, self.rollouts, f"pass_rate/{step}")
        mine = {group.problem.prompt.id: counts(group) for group in drawn}
        ranks: list[Mapping[str, tuple[int, int]]] = gather_object([mine])
        found = {name: each for rank in ranks for name, each in rank.items()}
        self.rates = {
            p.prompt.id: smoothed(*found[p.prompt.id], self.pseudo_count) for p in problems
        }
        self.measured_at = step

    def of(self, group: Group) -> float:
        return self.rates[group.problem.prompt.id]

    @property
    def known(self) -> tuple[float, ...]:
        return tuple(rate for rate in self.rates.values() if self.is_drawable(rate))

    def is_drawable(self, rate: float) -> bool:
        return self.between is None or self.between[0] < rate < self.between[1]

    def drawable(self, problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
        chosen = tuple(p for p in problems if self.is_drawable(self.rates[p.prompt.id]))
        if not chosen:
            raise DataError(
                f"pass_rate.between: before step {self.measured_at} none of {len(problems)} "
                f"problems has a pass rate strictly between {self.between}; widen it, measure with "
                "more rollouts, or set pass_rate.pseudo_count"
            )
        return chosen

    def metrics(self) -> Mapping[str, float]:
        rates = list(self.rates.values())
        return {
            "pass_rate/mean": fmean(rates),
            "pass_rate/drawable": len(self.known) / len(rates),
            "pass_rate/below_a_quarter": fmean(rate < 0.25 for rate in rates),
            "pass_rate/above_three_quarters": fmean(rate > 0.75 for rate in rates),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"rates": dict(self.rates), "measured_at": self.measured_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rates, self.measured_at = dict(state["rates"]), state["measured_at"]


def counts(group: Group) -> tuple[int, int]:
    """Successes, and judged rollouts."""
    judged = [verdict.success for verdict in group.verdicts if verdict.status != "no_verdict"]
    return sum(judged), len(judged)


def smoothed(successes: int, judged: int, pseudo_count: float) -> float:
    """(c + a) / (K + 2 a); 0 where nothing is known."""
    known = judged + 2 * pseudo_count
    return (successes + pseudo_count) / known if known else 0.0
