"""Whose parameters teach."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from opd.config import locate, part
from opd.errors import RecipeError
from opd.learner.learner import Learner
from opd.learner.model import (
    PRECISIONS,
    Causal,
    Model,
    causal_of,
    compile_layers,
    head_of,
    load_causal,
    merged_weights,
    silence_dropout,
)
from opd.rollout.chat import Chat
from opd.teacher.alignment import Aligned, align, shared_entries
from opd.teacher.recording import Recording
from opd.types import Rollout


class TeacherWeights(ABC):
    """Parameters to score with. What `setup` opens and `follow` changes is state, not recipe: what
    `follow` changes is in a `state_dict` that `load_state_dict` undoes."""

    can_write: ClassVar[bool] = True
    """Whether the student's engine can hold the parameters, so that a view may be written by them.
    """

    def setup(self, learner: Learner) -> None:  # noqa: B027
        """Open what is needed, once, before any step or resume."""

    @property
    def recording(self) -> Recording | None:
        """Scores that stand on disk, for weights that are opened nowhere."""
        return None

    def folder(self, model: Model) -> str:
        """Where the parameters come from, as they are before the first step of `model`."""
        return model.path

    @abstractmethod
    def scoring(self, learner: Learner) -> AbstractContextManager[Causal]:
        """A context in which the yielded model computes with the teacher's parameters."""

    def weights(self, learner: Learner) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the model that scores, for an engine in which it is to write."""
        with self.scoring(learner) as model:
            yield from merged_weights(model)

    def follow(self, learner: Learner) -> None:  # noqa: B027
        """Move after one optimizer step."""

    def reads(self, student: Chat) -> Chat:
        """The tokenizer of what is scored."""
        return student


@part
class Live(TeacherWeights):
    """The student's own current parameters."""

    @contextmanager
    def scoring(self, learner: Learner) -> Iterator[Causal]:
        yield learner.model


@part
class Frozen(TeacherWeights):
    """The student's initial parameters; with LoRA, the adapter switched off at no memory."""

    initial: PreTrainedModel = field(init=False, repr=False, compare=False)

    def setup(self, learner: Learner) -> None:
        if not isinstance(learner.model, PeftModel):
            self.initial = frozen_copy(learner)

    @contextmanager
    def scoring(self, learner: Learner) -> Iterator[Causal]:
        if isinstance(learner.model, PeftModel):
            with learner.model.disable_adapter():
                yield learner.model
        else:
            yield self.initial


@part
class EMA(TeacherWeights):
    """An exponential moving average: `teacher <- decay * teacher + (1 - decay) * student`.

    With LoRA the average is of the update B·A itself, kept dense `[out, in]` a layer and added to
    the output of the frozen layer: the product of averaged factors is not the average of products.
    """

    decay: Annotated[float, Field(ge=0, le=1)] = 0.99
    """1 never moves, 0 copies the student."""
    every: Annotated[int, Field(gt=0)] = 1
    """Steps from one move to the next."""
    steps: int = field(init=False, default=0, repr=False, compare=False)
    average: PreTrainedModel = field(init=False, repr=False, compare=False)
    updates: dict[str, Tensor] = field(init=False, default_factory=dict, repr=False, compare=False)

    def setup(self, learner: Learner) -> None:
        if isinstance(learner.model, PeftModel):
            self.updates = {
                name: layer.get_delta_weight("default").detach().float().clone()
                for name, layer in lora_layers(learner.model)
            }
        else:
            self.average = frozen_copy(learner)

    @contextmanager
    def scoring(self, learner: Learner) -> Iterator[Causal]:
        if not isinstance(learner.model, PeftModel):
            yield self.average
            return
        hooks = [
            layer.get_base_layer().register_forward_hook(adding(self.updates[name]))
            for name, layer in lora_layers(learner.model)
        ]
        try:
            # A compiled layer would not notice the hooks.
            with torch.compiler.set_stance("force_eager"), learner.model.disable_adapter():
                yield learner.model
        finally:
            for hook in hooks:
                hook.remove()

    def weights(self, learner: Learner) -> Iterator[tuple[str, Tensor]]:
        prefix = "base_model.model."
        updates = {f"{name.removeprefix(prefix)}.weight": u for name, u in self.updates.items()}
        for name, weight in super().weights(learner):
            update = updates.get(name)
            yield name, weight if update is None else weight + update.to(weight.dtype)

    @torch.no_grad()
    def follow(self, learner: Learner) -> None:
        self.steps += 1
        if self.steps % self.every:
            return
        rate = 1.0 - self.decay
        if isinstance(learner.model, PeftModel):
            for name, layer in lora_layers(learner.model):
                self.updates[name].lerp_(layer.get_delta_weight("default").float(), rate)
        else:
            for mine, theirs in zip(
                self.average.parameters(), learner.model.parameters(), strict=True
            ):
                mine.lerp_(theirs, rate)

    def state_dict(self) -> dict[str, Any]:
        held = {"updates": self.updates} if self.updates else {"average": self.average.state_dict()}
        return {"steps": self.steps, **held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        if self.updates:
            for name, update in self.updates.items():
                update.copy_(state["updates"][name])
        else:
            self.average.load_state_dict(state["average"])


@part
class Periodic(EMA):
    """A copy of the student, taken again after every so many steps. arXiv 2603.05433."""

    every: Annotated[int, Field(gt=0)] = 50
    decay: float = field(init=False, default=0.0)


@part
class External(TeacherWeights):
    """Another model of the same vocabulary."""

    can_write: ClassVar[bool] = False
    path: str
    """A folder or a hub id."""
    model: PreTrainedModel = field(init=False, repr=False, compare=False)

    def setup(self, learner: Learner) -> None:
        device = learner.accelerator.device
        stored = PRECISIONS[learner.recipe.dtype]
        model = load_causal(self.path, dtype=stored, attention=learner.recipe.attention)
        self.check(model, learner)
        silence_dropout(model)
        self.model = model
        nn.Module.to(model, device)
        self.model.requires_grad_(False)
        if learner.recipe.compile:
            compile_layers(model, device)

    def check(self, model: Causal, learner: Learner) -> None:
        """Raise RecipeError where the model cannot score the student's tokens."""
        theirs, mine = head_of(model).weight.shape[0], head_of(learner.model).weight.shape[0]
        if theirs != mine:
            raise RecipeError(
                f"teacher.weights.path: {self.path} has {theirs} vocabulary entries, the student "
                f"{mine}; choose a teacher with the student's tokenizer, or the name Foreign with "
                "a loss of spans"
            )

    @contextmanager
    def scoring(self, learner: Learner) -> Iterator[Causal]:
        yield self.model

    def folder(self, model: Model) -> str:
        return self.path


@part
class Cached(TeacherWeights):
    """No parameters: the scores that `opd score` has recorded of the same responses behind the same
    prompts. arXiv 2604.13010.
    """

    can_write: ClassVar[bool] = False
    path: str
    """The recording's folder."""
    scored_by: str | None = None
    """A hash, as `opd score` prints it, of the weights that must have scored; null takes any."""
    opened: Recording = field(init=False, repr=False, compare=False)

    @property
    def recording(self) -> Recording:
        return self.opened

    def folder(self, model: Model) -> str:
        raise RecipeError(
            "teacher.weights: Cached has no parameters to score with; name the teacher's, such as "
            "teacher.weights=Frozen"
        )

    def setup(self, learner: Learner) -> None:
        self.opened = Recording.open(Path(self.path))
        self.opened.check(learner, self.scored_by)

    def scoring(self, learner: Learner) -> AbstractContextManager[Causal]:
        raise AssertionError("what is recorded needs no model")


@part
class Foreign(External):
    """Another model with a tokenizer of its own: it reads a response in its own tokens, and is
    compared where they and the student's end together. arXiv 2402.12030."""

    spans: Literal["all", "single"] = "all"
    """Of which spans scores are taken: of all, or of those that are one token on both sides. Ours:
    in a longer one a teacher's merged token leaves little to the entries that both have."""
    row: Literal["last", "first"] = "last"
    """Which token's row stands for a span of several, times what the others are given: of the last
    one, behind those before it (TRL's `bayesian`), or of the first one, before those that came
    after it (`observed`)."""
    student: Chat = field(init=False, repr=False, compare=False)
    chat: Chat | None = field(init=False, default=None, repr=False, compare=False)
    shared: Tensor = field(init=False, repr=False, compare=False)
    """`[M, 2]` ids of vocabulary entries that are the same text."""

    def check(self, model: Causal, learner: Learner) -> None:
        """Any vocabulary will do."""
        self.student = Chat.open(locate(learner.recipe.path), learner.recipe.thinking)
        pairs = shared_entries(self.student, self.reads(self.student))
        self.shared = torch.tensor(pairs, device=learner.accelerator.device).view(-1, 2)

    def reads(self, student: Chat) -> Chat:
        if self.chat is None:
            self.chat = Chat.open(locate(self.path))
        return self.chat

    def aligned(self, rollouts: Mapping[int, Rollout]) -> dict[int, Aligned]:
        """Those that this model's tokens spell, under the same keys."""
        found = {
            key: align(self.student, self.reads(self.student), rollout)
            for key, rollout in rollouts.items()
        }
        if self.spans == "single":
            found = {key: one and one.single for key, one in found.items()}
        return {key: one for key, one in found.items() if one is not None and one.groups}


def frozen_copy(learner: Learner) -> PreTrainedModel:
    """A copy of the student that takes no gradient, compiled if the student is."""
    copy = deepcopy(causal_of(learner.model))
    copy.requires_grad_(False)
    if learner.recipe.compile:
        compile_layers(copy, learner.accelerator.device)
    return copy


def lora_layers(model: PeftModel) -> Iterator[tuple[str, LoraLinear]]:
    """(name, layer) of every layer that carries an adapter."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def adding(update: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook that adds `update` `[out, in]` to a linear layer's weight."""

    def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + linear(inputs[0], update.to(inputs[0].dtype))

    return hook
