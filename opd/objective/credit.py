"""Turns the rewards of a group of rollouts into advantages.

A rollout without a verdict gets 0 and does not enter the others' statistics.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import field, replace
from statistics import fmean
from typing import Annotated, Literal

from pydantic import Field

from opd.config import part
from opd.privileged import Group


class Credit(ABC):
    """How much better each rollout did than the others of its problem."""

    @abstractmethod
    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """One advantage for each judged rollout, in order; `rewards` has at least one."""

    def __call__(self, group: Group) -> list[float]:
        """`[G]` advantages, 0 where the verdict is missing."""
        judged = [v.status != "no_verdict" for v in group.verdicts]
        rewards = [v.reward for v, known in zip(group.verdicts, judged, strict=True) if known]
        advantages = iter(self.advantages(rewards) if rewards else ())
        return [next(advantages) if known else 0.0 for known in judged]


@part
class GroupMean(Credit):
    """(r - mean) / (deviation + epsilon). arXiv 2402.03300; without scale, 2503.20783."""

    scale: bool = True
    """Divide by the group's standard deviation."""
    ddof: Literal[0, 1] = 1
    """1 for the sample's deviation, 0 for the population's."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-4

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        mean = fmean(rewards)
        centred = [reward - mean for reward in rewards]
        if not self.scale:
            return centred
        freedom = max(1, len(rewards) - self.ddof)
        deviation = math.sqrt(math.fsum(c * c for c in centred) / freedom)
        return [c / (deviation + self.epsilon) for c in centred]


@part
class LeaveOneOut(Credit):
    """r minus the mean of the others' rewards; 0 for a rollout on its own. arXiv 2402.14740."""

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        others = len(rewards) - 1
        total = math.fsum(rewards)
        return [r - (total - r) / others if others else 0.0 for r in rewards]


@part
class Overlong(Credit):
    """Another credit after too long a response has lost reward: nothing up to `buffer` tokens
    before `limit`, 1 from `limit` on, a straight line between. arXiv 2503.14476.

    Whether a response succeeded stays as it is.
    """

    limit: Annotated[int, Field(gt=0)]
    """Tokens."""
    buffer: Annotated[int, Field(gt=0)]
    """Tokens."""
    credit: Credit = field(default_factory=GroupMean)

    def __post_init__(self) -> None:
        if self.buffer > self.limit:
            raise ValueError("the buffer of Overlong must not exceed its limit")

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        return self.credit.advantages(rewards)

    def __call__(self, group: Group) -> list[float]:
        lengths = (len(rollout.token_ids) for rollout in group.rollouts)
        verdicts = tuple(
            replace(verdict, reward=verdict.reward - self.loss(length))
            for verdict, length in zip(group.verdicts, lengths, strict=True)
        )
        return self.credit(replace(group, verdicts=verdicts))

    def loss(self, tokens: int) -> float:
        """What a response of so many tokens loses, in [0, 1]."""
        return min(1.0, max(0.0, (tokens - self.limit + self.buffer) / self.buffer))
