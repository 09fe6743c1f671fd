"""Rewards: what a response is worth, and the judge that alone knows the answers."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from typing import TypeVar

from opd.errors import DataError, SandboxError
from opd.privileged import Problem
from opd.types import Rollout, Verdict

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Made = TypeVar("Made")


class Reward(ABC):
    """Compares responses with the privileged side of their problem."""

    @property
    def concurrency(self) -> int:
        """How many problems are judged at once, each in a thread of its own. More than 1 helps a
        reward that waits for other processes, and asks of it to be safe from any thread."""
        return 1

    @abstractmethod
    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        """One verdict a rollout, in order. Deterministic, and never raises over a response: text
        that holds no answer is a verdict too. Feedback may be shown to a teacher, so it says what
        is wrong with the response and not what is right."""

    def check(self, problem: Problem) -> None:  # noqa: B027 (most problems need no check)
        """Raise ValueError when this reward could judge no response to `problem`."""

    def provenance(self) -> Mapping[str, str]:
        """What verdicts depend on besides this reward's settings, for every report: the versions of
        its verifiers, and how programs are confined. Name to value."""
        return {}


class Judge:
    """A reward together with the problems that it judges.

    It is called with rollouts alone, so that an evaluator never holds a Problem.
    """

    def __init__(self, reward: Reward, problems: Iterable[Problem]) -> None:
        """Raises DataError for a problem that the reward cannot judge."""
        self._reward = reward
        self._problems = {problem.prompt.id: problem for problem in problems}
        self._stored: dict[object, Verdict] = {}
        self._mapped(self._check, list(self._problems.values()))

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Verdict]:
        """One verdict a rollout, in order. A reward that fails gives `no_verdict`, never a zero:
        the fault is the grader's, not the student's. Raises DataError for a rollout of no problem
        here, and SandboxError where no program can be run.

        What this run did not draw comes again at every visit of its problem, and is judged once.
        """
        known = [self._stored.get(_key(rollout)) for rollout in rollouts]
        new = [rollout for rollout, before in zip(rollouts, known, strict=True) if before is None]
        found = iter(self._verdicts(new))
        verdicts = [next(found) if before is None else before for before in known]
        self._stored |= {
            _key(rollout): verdict
            for rollout, verdict in zip(rollouts, verdicts, strict=True)
            if rollout.policy_step < 0 and verdict.status != "no_verdict"
        }
        return verdicts

    def _verdicts(self, rollouts: Sequence[Rollout]) -> list[Verdict]:
        places: dict[str, list[int]] = {}
        for place, rollout in enumerate(rollouts):
            places.setdefault(rollout.prompt.id, []).append(place)
        groups = [
            (self._problem(name), [rollouts[place] for place in group])
            for name, group in places.items()
        ]
        judged = self._mapped(lambda group: self._judged(*group), groups)
        verdicts: dict[int, Verdict] = {}
        for group, found in zip(places.values(), judged, strict=True):
            verdicts.update(zip(group, found, strict=True))
        return [verdicts[place] for place in range(len(rollouts))]

    def _mapped(self, function: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
        """What `function` makes of each item, in order, as many at once as the reward allows. The
        first item that raises, in order, is the one that is heard of."""
        workers = min(self._reward.concurrency, len(items))
        if workers <= 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(workers, thread_name_prefix="judge") as pool:
            try:
                return list(pool.map(function, items))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _check(self, problem: Problem) -> None:
        try:
            self._reward.check(problem)
        except ValueError as error:
            kind = type(self._reward).__name__
            name = problem.prompt.id
            raise DataError(f"problem {name!r}: {kind} cannot judge it: {error}") from None

    def _problem(self, name: str) -> Problem:
        if name not in self._problems:
            raise DataError(f"there is no problem {name!r} to judge by; use the rollouts' dataset")
        return self._problems[name]

    def _judged(self, problem: Problem, rollouts: list[Rollout]) -> list[Verdict]:
        try:
            verdicts = self._reward(problem, rollouts)
            if len(verdicts) != len(rollouts) or not all(isfinite(v.reward) for v in verdicts):
                raise ValueError("verdicts are missing, too many or not finite")
        except SandboxError:
            raise
        except Exception as error:
            if len(rollouts) > 1:
                return [
                    verdict for rollout in rollouts for verdict in self._judged(problem, [rollout])
                ]
            logger.warning(
                "no verdict on a response to problem %r: %s fails with %s",
                problem.prompt.id,
                type(self._reward).__name__,
                type(error).__name__,
            )
            return [Verdict("no_verdict", 0.0)]
        return verdicts


def _key(rollout: Rollout) -> object:
    """What a verdict depends on."""
    return rollout.prompt.id, rollout.token_ids, rollout.text, rollout.finish
