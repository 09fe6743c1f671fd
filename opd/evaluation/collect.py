"""Every sample of a benchmark, drawn and judged once, however often the process is killed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from opd.evaluation.evaluator import Benchmark
from opd.evaluation.transcript import Key, Kind, Sample, Transcript
from opd.rollout.engine import Sampling
from opd.rollout.sampler import Ask, Drawer, Drawn, Unasked
from opd.types import Prompt, Verdict


@dataclass(frozen=True)
class Task:
    """A benchmark with how its responses are drawn."""

    benchmark: Benchmark
    sampling: Sampling
    samples: int
    """Responses a problem at `sampling`."""
    greedy: bool
    """One response at temperature 0 on top."""

    def rounds(self) -> list[tuple[Kind, Sampling, list[Ask]]]:
        """Everything to ask, the first responses to all problems before the second ones."""
        prompts = self.benchmark.prompts
        sampled = [Ask(prompt, index) for index in range(self.samples) for prompt in prompts]
        found: list[tuple[Kind, Sampling, list[Ask]]] = [("sampled", self.sampling, sampled)]
        if self.greedy:
            cold = replace(self.sampling, temperature=0.0, top_p=1.0, top_k=0)
            found.append(("greedy", cold, [Ask(prompt, 0) for prompt in prompts]))
        return found

    def key(self, kind: Kind, ask: Ask) -> Key:
        return self.benchmark.name, kind, ask.prompt.id, ask.index

    def wanted(self) -> list[Key]:
        """Of every sample that the task asks for."""
        return [self.key(kind, ask) for kind, _, asks in self.rounds() for ask in asks]

    @property
    def about(self) -> dict[str, object]:
        """For a protocol."""
        how = {"samples": self.samples, "greedy": self.greedy}
        return {**how, "sampling": asdict(self.sampling)}


def collect(
    task: Task,
    drawer: Drawer,
    transcript: Transcript,
    chunk: int,
) -> Iterator[int]:
    """Draw and judge what `transcript` lacks of `task`, `chunk` responses at a time.

    A chunk always holds the same asks, so that an engine works on the same batches whenever it was
    killed; of a chunk that was half written only the other half is added. Yields how many samples
    each chunk has, when they are on disk.
    """
    for kind, sampling, asks in task.rounds():
        for start in range(0, len(asks), chunk):
            part = asks[start : start + chunk]
            if not all(task.key(kind, ask) in transcript.samples for ask in part):
                drawn = drawer.each(part, sampling, f"evaluate/{task.benchmark.name}")
                transcript.append(judged(task, kind, sampling, part, drawn))
            yield len(part)


def judged(
    task: Task,
    kind: Kind,
    sampling: Sampling,
    asks: Sequence[Ask],
    drawn: Sequence[Drawn | Unasked],
) -> list[Sample]:
    """The samples of a chunk, with the verdicts of the benchmark's judge."""
    rollouts = [found.rollout for found in drawn if isinstance(found, Drawn)]
    verdicts = iter(task.benchmark.judge(rollouts) if rollouts else ())
    return [
        Sample(
            benchmark=task.benchmark.name,
            kind=kind,
            problem=ask.prompt.id,
            sample=ask.index,
            prompt_sha256=prompt_hash(ask.prompt),
            seed=found.seed,
            sampling=asdict(sampling),
            **(outcome(found, next(verdicts)) if isinstance(found, Drawn) else refusal(found)),
        )
        for ask, found in zip(asks, drawn, strict=True)
    ]


def outcome(drawn: Drawn, verdict: Verdict) -> dict[str, Any]:
    return {
        "tokens": drawn.tokens,
        "finish": drawn.rollout.finish,
        "status": verdict.status,
        "reward": verdict.reward,
        "answer": verdict.answer,
        "text": drawn.rollout.text,
    }


def refusal(unasked: Unasked) -> dict[str, Any]:
    return {
        "tokens": 0,
        "finish": unasked.reason,
        "status": None,
        "reward": 0.0,
        "answer": None,
        "text": unasked.cause,
    }


def prompt_hash(prompt: Prompt) -> str:
    """SHA-256 of the messages, before any chat template."""
    turns = [[message.role, message.content] for message in prompt.messages]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()
