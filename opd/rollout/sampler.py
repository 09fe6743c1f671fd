"""Prompts to rollouts: rendering, seeds and lengths, the same for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from opd.errors import DataError
from opd.rollout.chat import Chat
from opd.rollout.engine import Completion, Engine, Request, Sampling
from opd.types import Prompt, Rollout


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
        rendered = [self.render(prompt, sampling.max_response_tokens) for prompt in prompts]
        requests = [
            Request(ids, seed_of(self.seed, occasion, prompt.id, index))
            for prompt, ids in zip(prompts, rendered, strict=True)
            for index in range(count)
        ]
        completions = iter(self.engine.generate(requests, sampling))
        return [
            [self.rollout(prompt, ids, next(completions)) for _ in range(count)]
            for prompt, ids in zip(prompts, rendered, strict=True)
        ]

    def render(self, prompt: Prompt, max_response_tokens: int) -> tuple[int, ...]:
        """The prompt's token ids `[P]`."""
        ids = self.chat.prompt_ids(prompt.messages)
        if len(ids) + max_response_tokens > self.max_length:
            raise DataError(
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


def seed_of(*names: object) -> int:
    """A 63-bit seed that depends on nothing but `names`."""
    digest = blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
