"""Responses of another model that suit a student: the best of several, and the end of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field, replace
from math import log, nan
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Annotated

from pydantic import Field

from opd.config import part
from opd.privileged import Problem, Trajectory
from opd.rollout.engine import Request, Sampling
from opd.rollout.judged import Judged
from opd.rollout.sampler import Sampler, seed_of
from opd.rollout.source import Source, Stored
from opd.teacher.recording import Recording
from opd.types import Rollout


@part
class MostTaught(Source):
    """Of each problem's stored responses the one that is richest in sentences that its writer finds
    likelier than the student does: the share of tokens in sentences with log q - log s above
    `threshold` on average, less the share in those below -`threshold`. arXiv 2601.09088; how
    sentences are scored is ours.
    """

    of: Stored
    student: str
    """A folder in which `opd score` has recorded what the student thinks of them, at the draw's
    temperature, as their own log-probs are."""
    view: str = "plain"
    """Of the recording."""
    threshold: Annotated[float, Field(ge=0)] = log(2)
    """Nats."""
    ends: str = ".!?;\n"
    """Characters that end a sentence."""
    opened: list[Recording] = field(init=False, default_factory=list, repr=False, compare=False)

    @property
    def tells_logprobs(self) -> bool:
        return self.of.tells_logprobs

    @property
    def most_per_problem(self) -> float:
        return 1

    def authors(self) -> frozenset[str]:
        return self.of.authors()

    def answered(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        return self.of.answered(problems)

    def collect(
        self, problems: Sequence[Problem], sampler: Sampler, sampling: Sampling, step: int
    ) -> list[list[Rollout]]:
        chosen = []
        for problem in problems:
            rows = self.of.rows()[problem.prompt.id]
            scores = [self.score(row, problem, sampler) for row in rows]
            best = max(range(len(rows)), key=scores.__getitem__)
            chosen.append([self.of.collect([problem], sampler, sampling, step)[0][best]])
        return chosen

    def score(self, row: Judged, problem: Problem, sampler: Sampler) -> float:
        """In [-1, 1]. Raises DataError for a response that the student has not scored."""
        if not self.opened:
            self.opened.append(Recording.open(Path(self.student)))
        plain = sampler.chat.prompt_ids(problem.prompt.messages)
        asked = Trajectory(row.rollout, row.verdict, 0.0, 0.0, {self.view: plain})
        student = self.opened[0].read(self.view, asked)["logprob"].tolist()
        sentences = split(sampler.chat.pieces(row.rollout.token_ids), self.ends)
        gaps = [
            theirs - mine
            for theirs, mine in zip(
                means(row.rollout.logprobs, sentences), means(student, sentences), strict=True
            )
        ]
        return balance(gaps, [len(sentence) for sentence in sentences], self.threshold)


def split(pieces: Sequence[str], ends: str) -> list[range]:
    """The places of each sentence's tokens; a sentence ends with a token that holds an end."""
    closing = [place + 1 for place, piece in enumerate(pieces) if any(end in piece for end in ends)]
    stops = list(dict.fromkeys([*closing, len(pieces)]))
    return [range(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


def means(logprobs: Sequence[float], sentences: Sequence[range]) -> list[float]:
    """The mean log-prob of each sentence: the log of its tokens' geometric mean."""
    return [fmean(logprobs[place] for place in sentence) for sentence in sentences]


def balance(gaps: Sequence[float], tokens: Sequence[int], threshold: float) -> float:
    """The share of tokens in sentences whose gap exceeds `threshold`, less that below its
    negative."""
    more = sum(count for gap, count in zip(gaps, tokens, strict=True) if gap > threshold)
    less = sum(count for gap, count in zip(gaps, tokens, strict=True) if gap < -threshold)
    return (more - less) / sum(tokens)


@part
class HandOff(Source):
    """A student's stored responses, each cut at a random place in its second half and gone on with
    by the model at hand, a better one. arXiv 2601.09088: the student then learns all of it, its own
    beginning too, which is where it must know how to go on.
    """

    of: Stored
    """Best those that failed."""

    @property
    def tells_logprobs(self) -> bool:
        return False

    def answered(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        return self.of.answered(problems)

    def collect(
        self, problems: Sequence[Problem], sampler: Sampler, sampling: Sampling, step: int
    ) -> list[list[Rollout]]:
        begun = [
            [self.cut(rollout, place, sampler) for place, rollout in enumerate(rollouts)]
            for rollouts in self.of.collect(problems, sampler, sampling, step)
        ]
        asked = [
            Request(
                rollout.prompt_ids + rollout.token_ids,
                seed_of(sampler.seed, "hand off", rollout.prompt.id, place),
            )
            for rollouts in begun
            for place, rollout in enumerate(rollouts)
        ]
        ends = iter(sampler.engine.generate(asked, sampling))
        whole = []
        for rollouts in begun:
            whole.append([])
            for rollout in rollouts:
                end = next(ends)
                token_ids = rollout.token_ids + end.token_ids
                unknown = (nan,) * len(rollout.token_ids)
                whole[-1].append(
                    replace(
                        rollout,
                        token_ids=token_ids,
                        logprobs=unknown + end.logprobs,
                        policy_step=end.policy_step,
                        finish=end.finish,
                        text=sampler.chat.text(token_ids),
                    )
                )
        return whole

    def cut(self, rollout: Rollout, place: int, sampler: Sampler) -> Rollout:
        """Its first half and a random part of the second, never its end."""
        length = len(rollout.token_ids)
        draw = Random(seed_of(sampler.seed, "cut", rollout.prompt.id, place))
        kept = draw.randrange(math.ceil(length / 2), length) if length > 1 else 0
        return replace(rollout, token_ids=rollout.token_ids[:kept])
