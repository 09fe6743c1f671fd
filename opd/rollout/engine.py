"""What every rollout engine does: tokens in, tokens and their log-probs out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from opd.config import part

if TYPE_CHECKING:
    from torch import Tensor

    from opd.types import Finish


@part
class Sampling:
    """How responses are drawn."""

    max_response_tokens: Annotated[int, Field(gt=0)]
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0 takes the most probable token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 keeps the whole vocabulary."""


@dataclass(frozen=True)
class Request:
    """One response to draw. Its seed alone decides the draw, whatever else shares the batch."""

    prompt_ids: tuple[int, ...]
    """`[P]`."""
    seed: int
    """0 to 2^63 - 1."""


@dataclass(frozen=True)
class Completion:
    """One drawn response."""

    token_ids: tuple[int, ...]
    """`[T]`, the stop token included when there is one."""
    logprobs: tuple[float, ...]
    """`[T]` nats, log-softmax of logits / temperature (of the raw logits at temperature 0) over the
    whole vocabulary, before top-k and top-p cut it."""
    finish: Finish
    policy_step: int
    """The version that `load` was last given."""


class Engine(ABC):
    """Draws responses. Knows tokens only: never text, rewards or methods.

    Parts of this kind are built from a recipe without touching a device; `open` does the heavy
    work once; until the first `load` the engine serves the folder's own weights as version 0.
    """

    choices: ClassVar[dict[str, str]] = {
        "hf": "opd.rollout.hf:HF",
        "vllm": "opd.rollout.vllm:VLLM",
    }
    """What a recipe may write for an engine, and the class that it means."""

    @abstractmethod
    def open(self, path: str, *, dtype: str, max_length: int, seed: int) -> None:
        """Load the model folder `path`; `dtype` is float32 or bfloat16, `max_length` counts prompt
        and response tokens. Raises EngineError when the model cannot be served."""

    @abstractmethod
    def load(self, weights: Iterable[tuple[str, Tensor]], step: int) -> None:
        """Take new weights, under Hugging Face names, as version `step`. Raises EngineError for a
        name that is unknown or missing and for a shape that differs."""

    @abstractmethod
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion a request, in the same order. Raises DataError when a prompt and
        `max_response_tokens` do not fit into `max_length`."""

    def sleep(self) -> None:  # noqa: B027 (an engine may have nothing to free)
        """Free accelerator memory until `wake`."""

    def wake(self) -> None:  # noqa: B027
        """Undo `sleep`."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; the engine is not used again."""
