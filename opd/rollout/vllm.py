"""Rollouts from vLLM in this process, its weights replaced in place; the one file that imports it.

Which log-probs: of vLLM's own modes, `raw` leaves the temperature out and `processed` is taken
after top-k and top-p. The trainer compares with log-softmax(logits / temperature) over the whole
vocabulary, so the sampler of the opened engine is asked for that (`record_before_truncation`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from opd.config import part
from opd.errors import EngineError, OpdError, first_line
from opd.rollout.engine import Completion, Engine, Request, Sampling
from opd.rollout.serving import Served, read_served

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput
    from vllm.v1.worker.gpu_worker import Worker

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""The engine lives in this process, with the sampler that `record_before_truncation` knows."""

CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Without `nobind` every thread of this process, the trainer's too, is pinned to one core."""


@part
class VLLM(Engine):
    """Draws with vLLM, beside the trainer on one accelerator or on the CPU."""

    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the accelerator's memory, while awake. On a CPU, VLLM_CPU_KVCACHE_SPACE (GiB) counts."""
    max_sequences: Annotated[int, Field(gt=0)] = 256
    """Drawn at the same time."""

    served: Served = field(init=False, repr=False, compare=False)
    on_cpu: bool = field(init=False, default=False, repr=False, compare=False)
    step: int = field(init=False, default=0, repr=False, compare=False)

    def open(self, path: str, *, dtype: str, max_length: int, seed: int) -> None:
        self.served = read_served(path, max_length)
        self.on_cpu = not torch.cuda.is_available()
        for name, value in (ENVIRONMENT | (CPU_ENVIRONMENT if self.on_cpu else {})).items():
            os.environ.setdefault(name, value)
        try:
            from vllm import LLM
        except ImportError as error:
            raise EngineError(
                f"engine=vllm: {first_line(error)}; install it with bash scripts/setup.sh full, or "
                "use engine=hf."
            ) from error
        with one_sentence("opening the model"):
            self.llm: LLM = LLM(
                model=path,
                dtype=dtype,  # pyright: ignore[reportArgumentType]
                seed=seed,
                skip_tokenizer_init=True,
                max_model_len=max_length,
                max_num_seqs=self.max_sequences,
                gpu_memory_utilization=self.memory_share,
                enable_prefix_caching=True,
                enable_sleep_mode=not self.on_cpu,
                enforce_eager=self.on_cpu,
                # A prompt cut in two rewinds its seeded generator, which a CPU cannot.
                enable_chunked_prefill=not self.on_cpu,
                generation_config="vllm",
                logprobs_mode="processed_logprobs",
            )
            self.llm.collective_rpc(record_before_truncation)

    def load(self, weights: Iterable[tuple[str, Tensor]], step: int) -> None:
        with one_sentence("taking new weights"):
            iterator = self.served.checked(weights)
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iterator})
            if self.served.tied and self.on_cpu:
                self.llm.apply_model(repack_head)
            # Cached keys and values of old weights would be read as if they were the new ones'.
            if not self.llm.reset_prefix_cache():
                raise EngineError(
                    "vLLM kept its prefix cache after new weights; load between two generations."
                )
        self.step = step

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.served.check(requests, sampling)
        with one_sentence("drawing responses"):
            from vllm import SamplingParams, TokensPrompt

            outputs = self.llm.generate(
                [TokensPrompt(prompt_token_ids=list(r.prompt_ids)) for r in requests],
                [
                    SamplingParams(
                        max_tokens=sampling.max_response_tokens,
                        temperature=sampling.temperature,
                        top_p=sampling.top_p,
                        top_k=sampling.top_k,
                        seed=request.seed,
                        logprobs=0,
                        flat_logprobs=True,
                        detokenize=False,
                    )
                    for request in requests
                ],
                use_tqdm=False,
            )
            return [self._completion(output) for output in outputs]

    def _completion(self, output: RequestOutput) -> Completion:
        from vllm.logprobs import FlatLogprobs

        drawn = output.outputs[0]
        assert isinstance(drawn.logprobs, FlatLogprobs), "flat log-probs were asked for"
        return Completion(
            token_ids=tuple(drawn.token_ids),
            logprobs=tuple(drawn.logprobs.logprobs),
            finish="stop" if drawn.finish_reason == "stop" else "length",
            policy_step=self.step,
        )

    def sleep(self) -> None:
        if not self.on_cpu:
            with one_sentence("freeing memory"):
                self.llm.sleep(level=1)

    def wake(self) -> None:
        if not self.on_cpu:
            with one_sentence("taking memory again"):
                self.llm.wake_up()

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm


@contextmanager
def one_sentence(doing: str) -> Iterator[None]:
    """Raise whatever the library raises as EngineError."""
    try:
        yield
    except OpdError:
        raise
    except Exception as error:
        raise EngineError(
            f"engine=vllm failed while {doing}: {first_line(error)}; "
            "set VLLM_LOGGING_LEVEL=INFO to see more, or use engine=hf."
        ) from error


def record_before_truncation(worker: Worker) -> None:
    """Make the sampler report log-softmax(logits / temperature) of the whole vocabulary."""
    sampler = worker.model_runner.sampler.topk_topp_sampler
    draw = sampler.forward

    def forward(
        logits: Tensor,
        generators: dict[int, torch.Generator],
        top_k: Tensor | None,
        top_p: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)  # draw changes logits
        return draw(logits, generators, top_k, top_p)[0], logprobs

    sampler.forward = forward


def repack_head(model: nn.Module) -> None:
    """Give a tied head its new weights: on a CPU vLLM multiplies with a packed copy of the head,
    and a reload renews the embedding but not the copy."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    dispatch_cpu_unquantized_gemm(model.get_submodule("lm_head"), remove_weight=False)
