"""The same questions, seeds and sampling before and after training, judged by the reward alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean
from typing import Annotated

from accelerate.utils import gather_object
from pydantic import Field

from opd.config import part
from opd.evaluation.harm import has_words, signs, traits
from opd.evaluation.metrics import mean_over_problems, pass_at
from opd.rollout.engine import Sampling
from opd.rollout.sampler import Sampler
from opd.types import Prompt, Rollout, Verdict

Interval = tuple[float, float]


@part
class Protocol:
    """How a benchmark is measured."""

    samples: Annotated[int, Field(gt=0)] = 8
    """Responses a problem at `sampling`; one greedy response comes on top."""
    sampling: Sampling | None = None
    """None takes the recipe's training sampling."""
    thinking: bool | None = None
    """Given to the chat template as `enable_thinking`; None is the mode that is trained,
    `model.thinking`."""
    every: Annotated[int, Field(ge=0)] = 0
    """Steps between measurements during training; 0 measures before and after only."""

    def is_due(self, done: int) -> bool:
        """Whether to measure after so many updates."""
        return bool(self.every) and done % self.every == 0


@dataclass(frozen=True)
class Benchmark:
    """Prompts with a judge that holds their answers: all that an evaluation may touch."""

    name: str
    prompts: tuple[Prompt, ...]
    judge: Callable[[Sequence[Rollout]], list[Verdict]]


@dataclass(frozen=True)
class Measurement:
    """One benchmark under one set of weights. Shares and accuracies are in [0, 1]."""

    benchmark: str
    problems: int
    samples: int
    sampled: float
    """avg@samples."""
    ci95: Interval
    greedy: float
    greedy_ci95: Interval
    mean_length: float
    """Response tokens."""
    truncated: float
    no_answer: float
    no_verdict: float
    entropy: float
    """Nats a token at `sampling`: the mean negative log-prob of the sampled responses."""
    by_problem: tuple[tuple[int, int], ...]
    """How many of each problem's sampled responses passed and how many were judged, in the order of
    the benchmark: what pairs two runs problem by problem."""
    signs: dict[str, float]
    """Name to number: pass@k for every power of two up to `samples`, and what opd.evaluation.harm
    watches."""

    @property
    def readings(self) -> dict[str, float]:
        """Every number that is followed over a run, as `benchmark/name`."""
        names = ("sampled", "greedy", "mean_length", "truncated", "no_answer", "entropy")
        found = {name: getattr(self, name) for name in names} | self.signs
        return {f"{self.benchmark}/{name}": value for name, value in found.items()}


def measure(
    benchmark: Benchmark,
    sampler: Sampler,
    sampling: Sampling,
    samples: int,
    *,
    rank: int = 0,
    ranks: int = 1,
) -> Measurement:
    """avg@samples at `sampling` and the greedy accuracy, with 95 % intervals over problems.

    Each rank draws for its share of the prompts; what a prompt is answered does not depend on it.
    """
    mine = benchmark.prompts[rank::ranks]
    greedy = Sampling(max_response_tokens=sampling.max_response_tokens, temperature=0.0)
    occasion = f"evaluate/{benchmark.name}"
    drawn = judged(benchmark, sampler.draw(mine, sampling, samples, occasion))
    best = judged(benchmark, sampler.draw(mine, greedy, 1, occasion))
    groups = in_order(gather_object([drawn]))
    firsts = in_order(gather_object([best]))
    flat = [pair for group in groups for pair in group]
    sampled = mean_over_problems([successes(group) for group in groups])
    first = mean_over_problems([successes(group) for group in firsts])
    return Measurement(
        benchmark=benchmark.name,
        problems=len(benchmark.prompts),
        samples=samples,
        sampled=sampled.value,
        ci95=(sampled.low, sampled.high),
        greedy=first.value,
        greedy_ci95=(first.low, first.high),
        mean_length=sum(len(rollout.token_ids) for rollout, _ in flat) / len(flat),
        truncated=sum(rollout.finish == "length" for rollout, _ in flat) / len(flat),
        no_answer=sum(verdict.status == "no_answer" for _, verdict in flat) / len(flat),
        no_verdict=sum(verdict.status == "no_verdict" for _, verdict in flat) / len(flat),
        entropy=-fmean([logprob for rollout, _ in flat for logprob in rollout.logprobs]),
        by_problem=tuple((sum(passed), len(passed)) for passed in map(successes, groups)),
        signs={
            **passes(list(map(successes, groups)), samples),
            **signs(
                [traits([rollout for rollout, _ in group]) for group in groups],
                has_words=has_words(sampler.chat),
            ),
        },
    )


def passes(found: Sequence[Sequence[bool]], samples: int) -> dict[str, float]:
    """pass@k for k = 1, 2, 4 ... and `samples`, over the problems with as many judged responses."""
    sizes = sorted({2**power for power in range(samples.bit_length())} | {samples})
    known = {k: [pass_at(k, len(p), sum(p)) for p in found if len(p) >= k] for k in sizes}
    return {f"pass@{k}": fmean(values) for k, values in known.items() if values}


Judged = list[tuple[Rollout, Verdict]]


def in_order(parts: Sequence[Sequence[Judged]]) -> list[Judged]:
    """The groups of all prompts, in the benchmark's order; rank r holds every prompt from r on."""
    rounds = zip_longest(*parts)
    return [group for groups in rounds for group in groups if group is not None]


def judged(benchmark: Benchmark, drawn: Sequence[Sequence[Rollout]]) -> list[Judged]:
    """Each prompt's rollouts beside their verdicts."""
    return [list(zip(group, benchmark.judge(group), strict=True)) for group in drawn]


def successes(group: Judged) -> list[bool]:
    """Whether each response passed; one that could not be judged is no miss and is left out."""
    return [verdict.success for _, verdict in group if verdict.status != "no_verdict"]


def before_and_after(before: Measurement, after: Measurement) -> Mapping[str, object]:
    """What a summary says of one benchmark."""
    return {
        "before": before.sampled,
        "after": after.sampled,
        "ci95_before": list(before.ci95),
        "ci95_after": list(after.ci95),
        "greedy_before": before.greedy,
        "greedy_after": after.greedy,
        "greedy_ci95_before": list(before.greedy_ci95),
        "greedy_ci95_after": list(after.greedy_ci95),
        "length_before": before.mean_length,
        "length_after": after.mean_length,
        "problems": after.problems,
        "samples": after.samples,
    }
