"""What every engine must know of a model folder before it serves it, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from opd.errors import DataError, EngineError, first_line
from opd.rollout.engine import Request, Sampling


@dataclass(frozen=True)
class Served:
    """A model folder as an engine sees it."""

    max_length: int
    """Prompt and response tokens together."""
    stop_ids: tuple[int, ...]
    """The tokens that end a response."""
    shapes: Mapping[str, torch.Size]
    """Every parameter under its Hugging Face name, tied ones under each of theirs."""
    required: frozenset[str]
    """The parameters that `load` must be given: tied ones once."""

    @property
    def tied(self) -> bool:
        """Some parameter goes by two names: the head is the embedding."""
        return len(self.required) < len(self.shapes)

    def check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        """Raise DataError for the first prompt that is empty or leaves too little room."""
        room = self.max_length - sampling.max_response_tokens
        for index, request in enumerate(requests):
            length = len(request.prompt_ids)
            if length == 0:
                raise DataError(f"prompt {index} has no tokens; give it at least one message.")
            if length > room:
                raise DataError(
                    f"prompt {index} has {length} tokens, and with sampling.max_response_tokens="
                    f"{sampling.max_response_tokens} that is more than the {self.max_length} that "
                    "the engine serves; shorten the prompt or lower max_response_tokens."
                )

    def checked(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass `weights` on. Raises EngineError for unknown names and wrong shapes as they come,
        and at the end for names that did not come."""
        missing = set(self.required)
        for name, tensor in weights:
            shape = self.shapes.get(name)
            if shape is None:
                raise EngineError(
                    f"new weights: the model has no parameter {name}; "
                    "send the names of the Hugging Face model."
                )
            if tensor.shape != shape:
                raise EngineError(
                    f"new weights: {name} has shape {tuple(tensor.shape)} where the engine serves "
                    f"{tuple(shape)}; train the model that the engine opened."
                )
            missing.discard(name)
            yield name, tensor
        if missing:
            raise EngineError(
                f"new weights: {len(missing)} parameters did not come, {min(missing)} among them; "
                "send every parameter at every load."
            )


def read_served(path: str, max_length: int) -> Served:
    """Read the folder `path`; its weights are not read. Raises EngineError when there is no model,
    no stop token or no room for `max_length` tokens."""
    try:
        config = AutoConfig.from_pretrained(path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"model.path={path}: no causal language model can be read ({first_line(error)}); "
            "give a folder with config.json and weights."
        ) from error
    context_length = config.get_text_config().max_position_embeddings
    if max_length > context_length:
        raise EngineError(
            f"model.path={path}: {max_length} tokens a sequence are asked for, but the model's "
            f"context holds {context_length}; shorten prompts or lower max_response_tokens."
        )
    return Served(
        max_length=max_length,
        stop_ids=_stop_ids(path),
        shapes={name: p.shape for name, p in model.named_parameters(remove_duplicate=False)},
        required=frozenset(name for name, _ in model.named_parameters()),
    )


def _stop_ids(path: str) -> tuple[int, ...]:
    try:
        end = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        end = AutoConfig.from_pretrained(path).eos_token_id
    if end is None:
        raise EngineError(
            f"model.path={path}: no token ends a response; "
            "set eos_token_id in generation_config.json."
        )
    return (end,) if isinstance(end, int) else tuple(end)
