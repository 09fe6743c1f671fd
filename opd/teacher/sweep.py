"""Hidden states of a teacher over many responses; a prompt before several of them is read once.

Legend: `n` distinct prompts of at most `P` tokens, `R` rows of responses of at most `T` tokens, `D`
hidden width, `H` key-value heads of width `d`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer

from opd.learner.attention import IMPLEMENTATIONS
from opd.learner.batch import Ids, build_context, context_to, fill, padded_rows
from opd.learner.model import Causal, backbone_of, causal_of, hidden_states

ANY_ID = 0
"""What stands on the right of a row, after all that a causal model reads, is never seen."""

STEADY_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Those whose angles depend on a token's position alone. The others stretch with the length of the
whole input, so that a prompt alone has other keys than before a response."""


def sweep(
    model: Causal,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    tokens_per_batch: int,
    packing: bool,
) -> Iterator[tuple[int, Tensor]]:
    """(index, hidden states `[tokens, D]` that predict the tokens) of every response behind the
    prompt at its index, in the order in which they are found. Call it without gradients.

    Equal prompts are read once, where the model allows it; the other responses are read in whole
    sequences, packed or padded. No pass exceeds `tokens_per_batch` positions unless it holds one
    sequence.
    """
    followers: dict[Ids, list[int]] = {}
    for index, prompt in enumerate(prompts):
        followers.setdefault(prompt, []).append(index)
    separable = prompts_are_separable(causal_of(model).config)
    shared = {p: indices for p, indices in followers.items() if separable and len(indices) > 1}
    alone = [index for index, prompt in enumerate(prompts) if prompt not in shared]
    yield from whole(model, prompts, responses, alone, tokens_per_batch, packing)
    with reading_in_parts(model):
        yield from in_parts(model, shared, responses, tokens_per_batch)


def prompts_are_separable(config: PreTrainedConfig) -> bool:
    """Whether a prompt's keys and values are all kept, and the same whatever follows it."""
    rotation = getattr(config, "rope_parameters", None) or {}
    # A sliding window drops the start of its prompt, a recurrent state cannot take up two rows of
    # other lengths, and without rotations positions may be counted from a mask that we do not give.
    return rotation.get("rope_type") in STEADY_ROTATIONS and all(
        type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers
    )


def whole(
    model: Causal,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    chosen: Sequence[int],
    tokens_per_batch: int,
    packing: bool,
) -> Iterator[tuple[int, Tensor]]:
    """As `sweep`, of the responses at the indices `chosen`, each behind a prompt of its own."""
    lengths = [len(prompts[index]) + len(responses[index]) for index in chosen]
    for members in fill(lengths, tokens_per_batch, packing=packing):
        indices = [chosen[member] for member in members]
        rows = [responses[index] for index in indices]
        before = [prompts[index] for index in indices]
        context = build_context(before, rows, packing=packing, pad_id=ANY_ID)
        hidden = hidden_states(model, context_to(context, causal_of(model).device))
        yield from zip(indices, hidden.split([len(row) for row in rows]), strict=True)


def in_parts(
    model: Causal,
    shared: Mapping[Ids, Sequence[int]],
    responses: Sequence[Ids],
    tokens_per_batch: int,
) -> Iterator[tuple[int, Tensor]]:
    """As `sweep`, of the responses at the indices that each prompt of `shared` stands before."""
    prompts = list(shared)
    for members in fill([len(prompt) for prompt in prompts], tokens_per_batch, packing=False):
        read = read_prompts(model, [prompts[member] for member in members])
        follows = [n for n, member in enumerate(members) for _ in shared[prompts[member]]]
        indices = [index for member in members for index in shared[prompts[member]]]
        # The last token of a response predicts nothing that is asked for.
        lengths = [len(responses[index]) - 1 for index in indices]
        for rows in fill(lengths, tokens_per_batch, packing=False, before=read.width):
            inputs = [responses[indices[row]][:-1] for row in rows]
            hidden = read_responses(model, read, [follows[row] for row in rows], inputs)
            for row, states in zip(rows, hidden, strict=True):
                yield indices[row], states[: lengths[row] + 1]


@dataclass(frozen=True)
class Read:
    """Prompts that a model has read."""

    layers: Sequence[DynamicLayer]
    """Keys and values `[n, H, P, d]` of every layer."""
    lengths: Tensor
    """`[n]` int64."""
    last: Tensor
    """`[n, D]` hidden states of the last prompt token, which predict a response's first."""

    @property
    def width(self) -> int:
        """P."""
        return self.layers[0].get_seq_length()


class Behind(DynamicLayer):
    """Keys and values of `R` rows of responses behind read prompts.

    The prompts' are repeated for one layer at a time: nothing is stored.
    """

    def __init__(self, prompts: DynamicLayer, follows: Tensor) -> None:
        super().__init__()
        self.keys, self.values = prompts.keys, prompts.values
        self.is_initialized = True
        self.follows = follows

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """All keys and values `[R, H, P + T, d]` of this layer."""
        assert self.keys is not None and self.values is not None, "the prompts have been read"
        keys = torch.cat([self.keys[self.follows], key_states], dim=-2)
        return keys, torch.cat([self.values[self.follows], value_states], dim=-2)


@contextmanager
def reading_in_parts(model: Causal) -> Iterator[None]:
    """What a model needs to keep keys and to see through a mask; all is put back at the end."""
    causal = causal_of(model)
    attention, training = causal.config._attn_implementation, causal.training
    # No other attention takes a mask of four dimensions.
    causal.config._attn_implementation = IMPLEMENTATIONS["sdpa"]
    # In training mode gradient checkpointing drops all keys; dropout is 0 in either mode.
    nn.Module.eval(causal)
    try:
        # Compiled layers would be compiled again for every place in a cache.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        nn.Module.train(causal, training)
        causal.config._attn_implementation = attention


def read_prompts(model: Causal, prompts: Sequence[Ids]) -> Read:
    """One pass over `[n, P]` prompts, padded on the right."""
    causal = causal_of(model)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=causal.device)
    ids, _, _ = padded_rows(prompts, max(map(len, prompts)), ANY_ID)
    cache = DynamicCache(config=causal.config)
    output = backbone_of(causal)(
        input_ids=ids.to(causal.device), past_key_values=cache, use_cache=True
    )
    hidden: Tensor = output.last_hidden_state
    every = torch.arange(len(prompts), device=causal.device)
    layers = cast("list[DynamicLayer]", cache.layers)
    return Read(layers, lengths, hidden[every, lengths - 1])


def read_responses(
    model: Causal, read: Read, follows: Sequence[int], responses: Sequence[Ids]
) -> Tensor:
    """`[R, 1 + T, D]`: the hidden states of the last prompt token and of every response token, of
    responses behind the prompts `follows` `[R]`; what stands past a row's own tokens is noise."""
    causal = causal_of(model)
    prompt = torch.tensor(follows, device=causal.device)
    first = read.last[prompt].unsqueeze(1)
    width = max(map(len, responses))
    if width == 0:
        return first
    ids, order, _ = padded_rows(responses, width, ANY_ID)
    lengths = read.lengths[prompt].unsqueeze(1)
    output = backbone_of(causal)(
        input_ids=ids.to(causal.device),
        position_ids=lengths + order.to(causal.device),
        attention_mask=visible(lengths, read.width, width),
        past_key_values=Cache(layers=[Behind(layer, prompt) for layer in read.layers]),
        use_cache=True,
    )
    return torch.cat([first, output.last_hidden_state], dim=1)


def visible(lengths: Tensor, before: int, width: int) -> Tensor:
    """`[R, 1, T, P + T]` bool: what each response token sees, behind prompts of `lengths` `[R, 1]`
    that were padded to P = `before`."""
    in_prompt = torch.arange(before, device=lengths.device) < lengths
    in_response = torch.ones(width, width, dtype=torch.bool, device=lengths.device).tril()
    rows = lengths.shape[0]
    parts = in_prompt[:, None].expand(rows, width, before), in_response.expand(rows, width, width)
    return torch.cat(parts, dim=-1).unsqueeze(1)
