"""Rollouts from transformers' own `generate`: any model, any machine, no further package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from opd.config import part
from opd.errors import NumericError
from opd.learner.attention import IMPLEMENTATIONS
from opd.rollout.engine import Completion, Engine, Request, Sampling
from opd.rollout.serving import Served, read_served


@part
class HF(Engine):
    """Draws with `generate` on the first accelerator, or on the CPU where there is none."""

    requests_per_batch: Annotated[int, Field(gt=0)] = 256

    served: Served = field(init=False, repr=False, compare=False)
    model: nn.Module = field(init=False, repr=False, compare=False)
    device: torch.device = field(init=False, repr=False, compare=False)
    step: int = field(init=False, default=0, repr=False, compare=False)

    def open(self, path: str, *, dtype: str, max_length: int, seed: int) -> None:
        self.served = read_served(path, max_length)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # The student's own attention: transformers' SDPA would leave out a soft-cap of its logits.
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), attn_implementation=IMPLEMENTATIONS["sdpa"]
        )
        # The folder's own sampling defaults would otherwise fill what Sampling leaves alone.
        model.generation_config = GenerationConfig()
        self.model = model
        self.wake()

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]], step: int) -> None:
        own = dict(self.model.named_parameters(remove_duplicate=False))
        for name, tensor in self.served.checked(weights):
            own[name].copy_(tensor)
        self.step = step

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.served.check(requests, sampling)
        by_length = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
        completions: dict[int, Completion] = {}
        for start in range(0, len(by_length), self.requests_per_batch):
            batch = by_length[start : start + self.requests_per_batch]
            drawn = self._draw([requests[i] for i in batch], sampling)
            completions.update(zip(batch, drawn, strict=True))
        return [completions[i] for i in range(len(requests))]

    @torch.inference_mode()
    def _draw(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        stop_ids = self.served.stop_ids
        input_ids, mask = left_padded(requests, padding=stop_ids[0])
        draw = SeededDraw(requests, sampling, self.device)
        # What follows a row's stop token is never read, so any token may pad.
        output = self.model.generate(  # pyright: ignore[reportCallIssue]
            inputs=input_ids.to(self.device),
            attention_mask=mask.to(self.device),
            logits_processor=LogitsProcessorList([draw]),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=sampling.max_response_tokens,
                eos_token_id=list(stop_ids),
                pad_token_id=stop_ids[0],
            ),
        )
        assert isinstance(output, Tensor)
        tokens = output[:, input_ids.shape[1] :].tolist()
        logprobs = torch.stack(draw.logprobs, dim=1)
        if logprobs.isnan().any():
            raise NumericError(
                f"engine: the weights of step {self.step} give log-probs that are no numbers; "
                "lower optimizer.learning_rate and run again"
            )
        return [
            completion(row, row_logprobs, stop_ids, self.step)
            for row, row_logprobs in zip(tokens, logprobs.tolist(), strict=True)
        ]

    def sleep(self) -> None:
        if self.device.type == "cuda":
            self.model.to("cpu")
            torch.cuda.empty_cache()

    def wake(self) -> None:
        self.model.to(self.device)

    def close(self) -> None:
        del self.model


class SeededDraw(LogitsProcessor):
    """Samples inside greedy decoding, so that a request's seed alone decides its draws.

    Each request owns a stream of uniform numbers, one a token, that picks the token by inversion
    of the cumulative distribution; all other tokens are then ruled out.
    """

    def __init__(self, requests: Sequence[Request], sampling: Sampling, device: torch.device):
        self.temperature = sampling.temperature
        self.truncations: list[LogitsProcessor] = []
        if sampling.top_k:
            self.truncations.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self.truncations.append(TopPLogitsWarper(sampling.top_p))
        self.uniform = uniform_streams(requests, sampling.max_response_tokens).to(device)
        self.logprobs: list[Tensor] = []
        """One `[R]` a step, in nats."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Turn `scores`, logits `[R, V]`, into 0 at the drawn token and -inf elsewhere."""
        logprobs = (scores / self.temperature if self.temperature else scores).log_softmax(-1)
        drawn = self._draw(input_ids, logprobs)[:, None]  # [R, 1]
        self.logprobs.append(logprobs.gather(1, drawn).squeeze(1))
        scores.fill_(-torch.inf)
        scores.scatter_(1, drawn, 0.0)
        return scores

    def _draw(self, input_ids: torch.LongTensor, logprobs: Tensor) -> Tensor:
        """`[R, V]` -> `[R]`."""
        if not self.temperature:
            return logprobs.argmax(-1)
        for truncate in self.truncations:
            logprobs = truncate(input_ids, logprobs)  # pyright: ignore
        # Double precision: in single precision a large vocabulary loses its rare tokens.
        cumulative = logprobs.double().exp().cumsum(-1)
        threshold = self.uniform[:, len(self.logprobs), None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, threshold, right=True).squeeze(1)
        return drawn.clamp(max=cumulative.shape[-1] - 1)  # rounding may pass the end


def uniform_streams(requests: Sequence[Request], length: int) -> Tensor:
    """`[R, length]` numbers in [0, 1); row r depends on the seed of request r alone."""
    generator = torch.Generator()
    streams = torch.empty(len(requests), length, dtype=torch.float64)
    for request, stream in zip(requests, streams, strict=True):
        torch.rand(length, generator=generator.manual_seed(request.seed), out=stream)
    return streams


def left_padded(requests: Sequence[Request], padding: int) -> tuple[Tensor, Tensor]:
    """Prompts `[R, P]` that end in the last column, and their mask `[R, P]`."""
    width = max(len(request.prompt_ids) for request in requests)
    blanks = [width - len(request.prompt_ids) for request in requests]
    rows = [[padding] * n + list(r.prompt_ids) for n, r in zip(blanks, requests, strict=True)]
    mask = torch.arange(width) >= torch.tensor(blanks)[:, None]
    return torch.tensor(rows), mask.long()


def completion(
    tokens: list[int], logprobs: list[float], stop_ids: tuple[int, ...], step: int
) -> Completion:
    """Cut a drawn row after its first stop token."""
    ends = [index for index, token in enumerate(tokens) if token in stop_ids]
    length = ends[0] + 1 if ends else len(tokens)
    return Completion(
        token_ids=tuple(tokens[:length]),
        logprobs=tuple(logprobs[:length]),
        finish="stop" if ends else "length",
        policy_step=step,
    )
