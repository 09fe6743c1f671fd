"""Leaps along the way that training has taken, kept where a few problems are then solved better.

Legend: `W` an attention or MLP matrix `[out, in]`, `B`, `A` the factors of its adapter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Annotated, Any, Literal, cast

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from pydantic import Field
from torch import Tensor, nn

from opd.config import part
from opd.learner.learner import Learner
from opd.learner.model import Causal, backbone_of


class Extrapolation(ABC):
    """What becomes of the weights, and of the optimizer's moments, between updates."""

    problems: int = 0
    """Training problems on which a leap is judged."""

    def setup(self, learner: Learner) -> None:  # noqa: B027
        """Remember where training starts from."""

    @abstractmethod
    def __call__(
        self, done: int, learner: Learner, value: Callable[[], float]
    ) -> Mapping[str, float]:
        """Move the weights after `done` updates, and tell of it in metrics. `value` draws under the
        current weights: the share of `problems` that is solved, the same on all ranks."""


@part
class Stay(Extrapolation):
    """The weights stay where the updates left them."""

    def __call__(
        self, done: int, learner: Learner, value: Callable[[], float]
    ) -> Mapping[str, float]:
        return {}


@part
class FreshMoments(Extrapolation):
    """The weights stay; before certain updates the optimizer forgets what it has seen, as if
    training began there. Ours, for stages that follow each other (arXiv 2603.11178)."""

    at_steps: tuple[Annotated[int, Field(gt=0)], ...]
    """Counted from 0."""

    def __call__(
        self, done: int, learner: Learner, value: Callable[[], float]
    ) -> Mapping[str, float]:
        if done in self.at_steps:
            learner.optimizer.state.clear()
        return {}


@part
class Leap(Extrapolation):
    """After 1, 2, 4, 8 ... updates: W + 2 k (W - W'), k = 1, 2 ... while that is no loss.

    W' stands where the last leap ended. Matrices of attention and MLP alone are moved, adapters by
    their product B A; the optimizer's moments are left alone. A leap that fails is undone bit for
    bit. arXiv 2605.11739; measuring the weights themselves again before each leap is ours.
    """

    problems: Annotated[int, Field(gt=0)] = 50
    reaches: Annotated[int, Field(ge=0)] = 5
    """Largest k."""
    accept: Literal["no_worse", "better"] = "better"
    """Than what stands: `no_worse` as the paper writes, `better` as its code has it."""
    origin: dict[str, Tensor] = field(init=False, default_factory=dict, repr=False, compare=False)
    """W', or the product of its adapter, float32."""

    def setup(self, learner: Learner) -> None:
        self.origin = {name: place.read() for name, place in places(learner.model)}

    @torch.no_grad()
    def __call__(
        self, done: int, learner: Learner, value: Callable[[], float]
    ) -> Mapping[str, float]:
        if done & (done - 1) or not self.reaches:
            return {}
        moved = dict(places(learner.model))
        here = {name: place.read() for name, place in moved.items()}
        kept = {name: place.parameter.clone() for name, place in moved.items()}
        best, reach, missed = value(), 0, 0.0
        for k in range(1, self.reaches + 1):
            off = max(
                place.write(here[name] + 2 * k * (here[name] - self.origin[name]))
                for name, place in moved.items()
            )
            found = value()
            if not (found > best or (found == best and self.accept == "no_worse")):
                break
            best, reach, missed = found, k, off
            kept = {name: place.parameter.clone() for name, place in moved.items()}
        for name, place in moved.items():
            place.parameter.copy_(kept[name])
        self.origin = {name: place.read() for name, place in moved.items()}
        return {"leap/reach": reach, "leap/solved": best, "leap/missed": missed}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.origin)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.origin = {name: state[name].to(now.device) for name, now in self.origin.items()}


class Place:
    """A matrix that is trained whole."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter

    def read(self) -> Tensor:
        """A copy `[out, in]`, float32."""
        return self.parameter.detach().float().clone()

    def write(self, target: Tensor) -> float:
        """Move there; the share of the target's norm that was missed."""
        self.parameter.copy_(target)
        return 0.0


class AdaptedPlace(Place):
    """The product of an adapter's factors, of which B moves.

    With A where the optimizer knows it, B is the least-squares solution of B A = target. Ours.
    """

    def __init__(self, layer: LoraLinear) -> None:
        self.layer = layer
        self.across = cast("Tensor", layer.lora_A["default"].weight)
        super().__init__(cast("Tensor", layer.lora_B["default"].weight))

    def read(self) -> Tensor:
        return self.layer.get_delta_weight("default").detach().float().clone()

    def write(self, target: Tensor) -> float:
        across = self.across.detach().double()
        wanted = target.double() / self.layer.scaling["default"]
        found = torch.linalg.lstsq(across.T, wanted.T).solution.T
        self.parameter.copy_(found)
        return ((found @ across - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()


def places(model: Causal) -> Iterator[tuple[str, Place]]:
    """(name, place) of every matrix of attention and MLP that is trained: no embedding, no head and
    no norm."""
    adapted = isinstance(model, PeftModel)
    for name, module in backbone_of(model).named_modules():
        if adapted and isinstance(module, LoraLinear):
            yield name, AdaptedPlace(module)
        elif not adapted and isinstance(module, nn.Linear):
            yield name, Place(cast("Tensor", module.weight))
