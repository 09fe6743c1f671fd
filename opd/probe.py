"""Answers to problems that are kept from training, watched as training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated

from pydantic import Field

from opd.config import part
from opd.errors import DataError
from opd.privileged import Group, Problem
from opd.reward import Judge
from opd.rollout.engine import Sampling
from opd.rollout.sampler import Sampler, seed_of
from opd.rollout.source import Demonstrations, Source
from opd.types import Rollout, Verdict


@part
class Probe:
    """Problems that are kept from training, each with one answer that stays. Ours.

    What the student thinks of the answers before a step's update is its metric `probe/nll`, and
    what a view's teacher thinks `probe/teacher_logprob/VIEW`: means over tokens, nats.
    """

    problems: Annotated[int, Field(gt=0)] = 32
    """How many of the recipe's are kept: by a hash of their ids, whatever the seed."""
    answers: Source = field(default_factory=Demonstrations)
    """Asked once, with the initial weights: the first written answer, or the first drawn one that
    succeeded; a problem that gets none is left out."""

    def kept(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        """The problems that are not trained on."""
        hashed = sorted(problems, key=lambda problem: seed_of("probe", problem.prompt.id))
        return tuple(hashed[: self.problems])

    def groups(
        self, kept: Sequence[Problem], sampler: Sampler, sampling: Sampling, judge: Judge
    ) -> tuple[Group, ...]:
        """The problems with their answers. Raises DataError when no problem gets one."""
        kept = self.answers.answered(kept)
        drawn = self.answers.collect(kept, sampler, sampling, -1)
        groups = []
        for problem, rollouts in zip(kept, drawn, strict=True):
            judged = zip(rollouts, judge(rollouts), strict=True)
            answer = next((pair for pair in judged if is_answer(*pair)), None)
            if answer is not None:
                groups.append(Group(problem, (answer[0],), (Verdict("pass", 1.0),)))
        if not groups:
            raise DataError(
                f"probe.answers: none of {len(kept)} problems got an answer that succeeds; ask "
                "for more rollouts of each, or take written answers"
            )
        return tuple(groups)


def is_answer(rollout: Rollout, verdict: Verdict) -> bool:
    """Whether it was written down, or succeeded."""
    return rollout.policy_step < 0 or verdict.success
