"""Where the responses to learn on come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random
from typing import Annotated, Literal

from pydantic import Field

from opd.config import part
from opd.errors import DataError
from opd.privileged import Problem
from opd.rollout.engine import Sampling
from opd.rollout.sampler import Sampler, seed_of
from opd.types import Rollout


class Source(ABC):
    """Rollouts for a step's problems."""

    @abstractmethod
    def collect(
        self, problems: Sequence[Problem], sampler: Sampler, sampling: Sampling, step: int
    ) -> list[list[Rollout]]:
        """The rollouts of each problem, in order. Raises DataError when a problem lacks what the
        source reads, or leaves no room in the context."""


@part
class OnPolicy(Source):
    """The student's own samples; it is given the prompt and nothing else."""

    rollouts_per_problem: Annotated[int, Field(gt=0)] = 1

    def collect(
        self, problems: Sequence[Problem], sampler: Sampler, sampling: Sampling, step: int
    ) -> list[list[Rollout]]:
        prompts = [problem.prompt for problem in problems]
        return sampler.draw(prompts, sampling, self.rollouts_per_problem, f"train/{step}")


@part
class Demonstrations(Source):
    """Written responses instead of samples."""

    read: Literal["demonstration", "solution"] = "demonstration"
    """The privileged field that holds the response."""

    def collect(
        self, problems: Sequence[Problem], sampler: Sampler, sampling: Sampling, step: int
    ) -> list[list[Rollout]]:
        return [[self.written(problem, sampler)] for problem in problems]

    def written(self, problem: Problem, sampler: Sampler) -> Rollout:
        """The demonstration of `problem` as a rollout of no policy."""
        text: str | None = getattr(problem.privileged, self.read)
        if text is None:
            raise DataError(
                f"problem {problem.prompt.id}: it has no {self.read} to learn from; set "
                "source.read to a field that the adapter fills"
            )
        token_ids = sampler.chat.response_ids(text)
        return Rollout(
            prompt=problem.prompt,
            prompt_ids=sampler.render(problem.prompt, len(token_ids)),
            token_ids=token_ids,
            logprobs=(0.0,) * len(token_ids),
            policy_step=-1,
            finish="stop",
            text=text,
        )


@part
class Mixed(Source):
    """One of two sources for each whole step, drawn by the step's number. arXiv 2306.13649."""

    first: Source
    second: Source
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of `first`."""

    def collect(
        self, problems: Sequence[Problem], sampler: Sampler, sampling: Sampling, step: int
    ) -> list[list[Rollout]]:
        draw = Random(seed_of(sampler.seed, "mixed", step)).random()
        chosen = self.first if draw < self.share else self.second
        return chosen.collect(problems, sampler, sampling, step)
