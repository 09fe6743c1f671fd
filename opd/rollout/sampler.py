"""Prompts to rollouts: rendering, seeds and lengths, the same for training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, Protocol

from opd.errors import DataError
from opd.rollout.chat import Chat
from opd.rollout.engine import Completion, Engine, Request, Sampling
from opd.types import Prompt, Rollout


@dataclass(frozen=True)
class Ask:
    """One response that is wanted: the `index`-th to `prompt`."""

    prompt: Prompt
    index: int


@dataclass(frozen=True)
class Drawn:
    """A response with the seed that it was drawn from."""

    rollout: Rollout
    """Without token ids and log-probs where whoever drew it does not tell them."""
    seed: int
    tokens: int
    """Of the response."""


@dataclass(frozen=True)
class Unasked:
    """A prompt that a model cannot be asked as it stands; nothing is ever cut to make it fit."""

    prompt: Prompt
    reason: Literal["does_not_fit", "unreadable"]
    cause: str
    seed: int


class Drawer(Protocol):
    """All that an evaluation needs of a model: an engine in this process, or an endpoint."""

    def each(self, asks: Sequence[Ask], sampling: Sampling, occasion: str) -> list[Drawn | Unasked]:
        """What becomes of each ask, in order; nothing but the seed, the prompt, its index and
        `occasion` decides a draw. Raises EngineError when the model cannot be reached."""
        ...


class DoesNotFit(DataError):
    """A prompt leaves no room for its response."""


@dataclass(frozen=True)
class Sampler:
    """An engine with the chat template and the context length that it serves."""

    engine: Engine
    chat: Chat
    max_length: int
    """Prompt and response tokens together."""
    seed: int

    def draw(
        self, prompts: Sequence[Prompt], sampling: Sampling, count: int, occasion: str
    ) -> list[list[Rollout]]:
        """`count` rollouts for each prompt, in order.

        The seed of a rollout is a hash of the run's seed, `occasion`, the prompt's id and its index
        among `count`: no generator state, so a resumed run draws what the first one would have.
        Raises DataError when a prompt leaves no room for `max_response_tokens`.
        """
        rendered = {prompt: self.render(prompt, sampling.max_response_tokens) for prompt in prompts}
        asks = [Ask(prompt, index) for prompt in prompts for index in range(count)]
        drawn = iter(self.drawn(asks, rendered, sampling, occasion))
        return [[next(drawn).rollout for _ in range(count)] for _ in prompts]

    def each(self, asks: Sequence[Ask], sampling: Sampling, occasion: str) -> list[Drawn | Unasked]:
        """What becomes of each ask, with the seeds that `draw` gives."""
        rendered: dict[Prompt, tuple[int, ...]] = {}
        refused: dict[Prompt, DataError] = {}
        for prompt in dict.fromkeys(ask.prompt for ask in asks):
            try:
                rendered[prompt] = self.render(prompt, sampling.max_response_tokens)
            except DataError as error:
                refused[prompt] = error
        able = [ask for ask in asks if ask.prompt in rendered]
        drawn = iter(self.drawn(able, rendered, sampling, occasion) if able else ())
        return [
            next(drawn)
            if ask.prompt in rendered
            else unasked(ask, refused[ask.prompt], self.seed_of(ask, occasion))
            for ask in asks
        ]

    def drawn(
        self,
        asks: Sequence[Ask],
        rendered: Mapping[Prompt, tuple[int, ...]],
        sampling: Sampling,
        occasion: str,
    ) -> list[Drawn]:
        """The responses to prompts whose token ids are known."""
        seeds = [self.seed_of(ask, occasion) for ask in asks]
        requests = [
            Request(rendered[ask.prompt], seed) for ask, seed in zip(asks, seeds, strict=True)
        ]
        completions = self.engine.generate(requests, sampling)
        return [
            Drawn(self.rollout(ask.prompt, rendered[ask.prompt], done), seed, len(done.token_ids))
            for ask, seed, done in zip(asks, seeds, completions, strict=True)
        ]

    def seed_of(self, ask: Ask, occasion: str) -> int:
        return seed_of(self.seed, occasion, ask.prompt.id, ask.index)

    def render(self, prompt: Prompt, max_response_tokens: int) -> tuple[int, ...]:
        """The prompt's token ids `[P]`."""
        ids = self.chat.prompt_ids(prompt.messages)
        if len(ids) + max_response_tokens > self.max_length:
            raise DoesNotFit(
                f"problem {prompt.id}: its prompt of {len(ids)} tokens and "
                f"max_response_tokens={max_response_tokens} exceed the context of "
                f"{self.max_length}; lower max_response_tokens or drop the problem"
            )
        return ids

    def rollout(self, prompt: Prompt, ids: tuple[int, ...], completion: Completion) -> Rollout:
        """The completion with what it answers."""
        return Rollout(
            prompt=prompt,
            prompt_ids=ids,
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            policy_step=completion.policy_step,
            finish=completion.finish,
            text=self.chat.text(completion.token_ids),
        )


def unasked(ask: Ask, error: DataError, seed: int) -> Unasked:
    reason = "does_not_fit" if isinstance(error, DoesNotFit) else "unreadable"
    return Unasked(ask.prompt, reason, str(error), seed)


def seed_of(*names: object) -> int:
    """A 63-bit seed that depends on nothing but `names`."""
    digest = blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
