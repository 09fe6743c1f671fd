"""How much of a reference the teacher is shown at a step: a share in [0, 1], one for all problems.

Legend: `B` decisions of one update of the policy, `L` steps of looking ahead.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Beta
from torch.nn.functional import softplus

from opd.config import part
from opd.objective.schedule import Between, Schedule
from opd.privileged import Group
from opd.rollout.sampler import seed_of
from opd.types import Update

Share = Annotated[float, Field(ge=0, le=1)]

STATE = 6
"""Numbers that a decision is made on."""
HIDDEN = 32
EPSILON = 1e-8
WATCHED = ("share", "loss", "mismatch", "probe")
"""What a policy's state holds moving averages of."""


class Exposure(ABC):
    """A share for every step."""

    reads_probe: ClassVar[bool] = False
    """Whether it learns from what the recipe's probe measures."""

    @abstractmethod
    def at(self, step: int, steps: int, seed: int) -> float:
        """The share at `step` (from 0) of a run of `steps` with that seed; ask for it once a step,
        in order."""

    @classmethod
    def from_number(cls, value: float) -> Exposure:
        """What a plain number in a recipe stands for."""
        return Fixed(share=value)


@part
class Fixed(Exposure):
    """Always the same; 1 shows whole references, 0 none of their segments."""

    share: Share = 1.0

    def at(self, step: int, steps: int, seed: int) -> float:
        return self.share


@part
class Annealed(Exposure):
    """What a schedule says. Ours."""

    share: Annotated[Schedule, Between(0, 1)]

    def at(self, step: int, steps: int, seed: int) -> float:
        return self.share.at(step, steps)


@part
class Random(Exposure):
    """Uniform in [low, high], drawn every `hold` steps: what a learned share is to be set against.
    arXiv 2605.11458; the bounds are ours."""

    low: Share = 0.05
    high: Share = 1.0
    whole_from: Share = 1.0
    """Shares from here on are 1, which else is never drawn. Ours."""
    hold: Annotated[int, Field(gt=0)] = 5
    """Steps."""

    def __post_init__(self) -> None:
        check_bounds(self.low, self.high)

    def at(self, step: int, steps: int, seed: int) -> float:
        drawn = random.Random(seed_of(seed, "exposure", step // self.hold))
        share = drawn.uniform(self.low, self.high)
        return share if share < self.whole_from else 1.0


@dataclass(frozen=True)
class Decision:
    """A share that was drawn, and what was known then."""

    step: int
    state: tuple[float, ...]
    """`STATE` numbers."""
    sample: float
    """In (0, 1), before it was held within the bounds."""


class Policy:
    """The distribution of a share: Beta(a, b), (a, b) = 1 + softplus(f(state)), f a perceptron of
    one hidden layer of tanh whose last layer starts at zero, so that a = b = 1 + log 2."""

    def __init__(self, learning_rate: float) -> None:
        generator = torch.Generator().manual_seed(seed_of("exposure policy") % 2**32)
        first = torch.randn(HIDDEN, STATE, generator=generator, dtype=torch.float64) / STATE**0.5
        self.parameters = [first, *(first.new_zeros(n) for n in (HIDDEN, (2, HIDDEN), 2))]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate)

    def __call__(self, states: Sequence[Sequence[float]]) -> Beta:
        """The distributions `[B]` for states `[B, STATE]`."""
        weight, bias, last_weight, last_bias = self.parameters
        hidden = torch.tanh(weight.new_tensor(states) @ weight.T + bias)
        return beta(hidden @ last_weight.T + last_bias)

    def improve(
        self, decisions: Sequence[Decision], rewards: Sequence[float], ceiling: float, weight: float
    ) -> None:
        """One step of Adam on `policy_loss`."""
        samples = torch.tensor([d.sample for d in decisions], dtype=torch.float64)
        self.optimizer.zero_grad(set_to_none=True)
        distribution = self([d.state for d in decisions])
        policy_loss(distribution, samples, normalised(rewards), ceiling, weight).backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "parameters": [parameter.detach() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`."""
        for mine, saved in zip(self.parameters, state["parameters"], strict=True):
            mine.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])


def beta(outputs: Tensor) -> Beta:
    """Beta(1 + softplus(u), 1 + softplus(v)) for outputs (u, v) `[..., 2]`: never two-humped."""
    a, b = (1 + softplus(outputs)).unbind(-1)
    return Beta(a, b)


def policy_loss(
    distribution: Beta, samples: Tensor, advantages: Tensor, ceiling: float, weight: float
) -> Tensor:
    """-mean of A log pi(sample), plus weight * mean of max(0, H[pi] - ceiling)^2: entropy, nats, is
    held down where it exceeds the ceiling and never pushed up. arXiv 2605.11458."""
    excess = (distribution.entropy() - ceiling).clamp_min(0)
    return (weight * excess.square() - advantages * distribution.log_prob(samples)).mean()


def normalised(rewards: Sequence[float]) -> Tensor:
    """`[B]`: (R - mean) / (deviation of the population + epsilon)."""
    values = torch.tensor(rewards, dtype=torch.float64)
    return (values - values.mean()) / (values.std(correction=0) + EPSILON)


def learning_progress(losses: Sequence[float], discount: float) -> float:
    """sum over i = 1..L of discount^(i-1) max(0, l[i-1] - l[i]) for losses `[L + 1]`: what was
    gained; what was lost in between takes nothing away."""
    gains = (max(0.0, a - b) for a, b in pairwise(losses))
    return sum(discount**i * gain for i, gain in enumerate(gains))


def discounted_mean(values: Sequence[float], discount: float) -> float:
    """sum of discount^i v[i] / sum of discount^i."""
    weights = [discount**i for i in range(len(values))]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


@part
class BetaPolicy(Exposure):
    """A share drawn from a small learned policy and held for a few steps; its reward is how far the
    student's loss on the probe has fallen `look_ahead` steps later.

    R = learning progress + goal_weight * discounted mean of what log-prob the teacher, so exposed,
    gives the probe's answers; after `decisions` rewards one step of REINFORCE. The next share
    never waits for the last one's reward: decisions overlap. arXiv 2605.11458; every number here is
    ours, as are what is monitored and what stands for mismatch and confidence.
    """

    reads_probe: ClassVar[bool] = True
    hold: Annotated[int, Field(gt=0)] = 5
    """Steps between decisions."""
    look_ahead: Annotated[int, Field(gt=0)] = 10
    """Steps over which a decision earns its reward; no fewer than `hold`."""
    discount: Annotated[float, Field(gt=0, le=1)] = 0.9
    goal_weight: Annotated[float, Field(ge=0)] = 0.1
    decisions: Annotated[int, Field(gt=1)] = 4
    """Finished ones that an update of the policy takes."""
    entropy_ceiling: float = -0.1
    """Nats; that of the uniform distribution is 0."""
    entropy_weight: Annotated[float, Field(ge=0)] = 1.0
    low: Share = 0.05
    high: Share = 1.0
    whole_from: Share = 1.0
    """Shares from here on are 1: else a segment is always left out, for no sample is 1. Ours."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """Decay of the moving averages: of the shares, the loss, the mismatch and the probe's loss."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    policy: Policy = field(init=False, repr=False, compare=False)
    share: float = field(init=False, default=1.0, repr=False, compare=False)
    averages: dict[str, float] = field(init=False, default_factory=dict, repr=False, compare=False)
    confidence: float = field(init=False, default=0.0, repr=False, compare=False)
    losses: list[float] = field(init=False, default_factory=list, repr=False, compare=False)
    goals: list[float] = field(init=False, default_factory=list, repr=False, compare=False)
    pending: list[Decision] = field(init=False, default_factory=list, repr=False, compare=False)
    finished: list[tuple[Decision, float]] = field(
        init=False, default_factory=list, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_bounds(self.low, self.high)
        if self.look_ahead < self.hold:
            raise ValueError("a decision must be held no longer than look_ahead; lower hold")
        self.policy = Policy(self.learning_rate)

    def at(self, step: int, steps: int, seed: int) -> float:
        if step % self.hold == 0:
            self.decide(step, steps, seed)
        return self.share

    def decide(self, step: int, steps: int, seed: int) -> None:
        """Draw the share of the next `hold` steps."""
        watched = (self.averages.get(name, 0.0) for name in WATCHED)
        state = (step / steps, *watched, self.confidence)
        with torch.no_grad():
            found = self.policy([state])
        a, b = found.concentration1.item(), found.concentration0.item()
        sample = random.Random(seed_of(seed, "exposure", step)).betavariate(a, b)
        sample = min(1 - EPSILON, max(EPSILON, sample))
        held = min(self.high, max(self.low, sample))
        self.share = held if held < self.whole_from else 1.0
        self.pending.append(Decision(step, state, sample))

    def observe(self, update: Update, groups: Sequence[Group]) -> None:
        """Take note of the step; finish the decision whose time has come; learn when enough have.
        Everything read is of the weights before the step's update."""
        seen = update.metrics
        self.average("share", self.share)
        # A step that has trained on no token says nothing of these.
        if "entropy" in seen:
            self.average("loss", sum(seen[name] for name in seen if name.startswith("loss/")))
            self.average("mismatch", -mean_of(seen, "teacher_gap/"))
            self.confidence = math.exp(-seen["entropy"])
        self.average("probe", seen["probe/nll"])
        kept = self.look_ahead + 1
        self.losses = [*self.losses, self.averages["probe"]][-kept:]
        self.goals = [*self.goals, mean_of(seen, "probe/teacher_logprob/")][-kept:]
        if self.pending and update.step >= self.pending[0].step + self.look_ahead:
            self.finished.append((self.pending.pop(0), self.reward()))
        if len(self.finished) >= self.decisions:
            decisions, rewards = zip(*self.finished, strict=True)
            self.policy.improve(decisions, rewards, self.entropy_ceiling, self.entropy_weight)
            self.finished = []

    def average(self, name: str, value: float) -> None:
        """Move the average of that name; the first value is its start."""
        before = self.averages.get(name, value)
        self.averages[name] = self.smoothing * before + (1 - self.smoothing) * value

    def reward(self) -> float:
        """Of the decision `look_ahead` steps ago."""
        # What a step's teacher says bears the share of that step, its loss what was learned before.
        goal = discounted_mean(self.goals[:-1], self.discount)
        return learning_progress(self.losses, self.discount) + self.goal_weight * goal

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "share": self.share,
            "averages": self.averages,
            "confidence": self.confidence,
            "losses": self.losses,
            "goals": self.goals,
            "pending": [asdict(decision) for decision in self.pending],
            "finished": [(asdict(decision), reward) for decision, reward in self.finished],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`, bit for bit."""
        self.policy.load_state_dict(state["policy"])
        for name in ("share", "averages", "confidence", "losses", "goals"):
            setattr(self, name, state[name])
        self.pending = [Decision(**decision) for decision in state["pending"]]
        self.finished = [(Decision(**decision), reward) for decision, reward in state["finished"]]


def mean_of(metrics: Mapping[str, float], prefix: str) -> float:
    """Over the metrics whose names start so; 0 where there is none."""
    return fmean([v for name, v in metrics.items() if name.startswith(prefix)] or [0.0])


def check_bounds(low: float, high: float) -> None:
    if low > high:
        raise ValueError("low must not exceed high")
