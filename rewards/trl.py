"""Reward functions written for TRL."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, Literal

from pydantic import Field, field_validator

from opd.config import callable_named, part
from opd.privileged import Problem
from opd.reward import Reward
from opd.types import Rollout, Verdict

Shown = Literal["answer", "solution", "demonstration"]


@part
class TRL(Reward):
    """What a TRL reward function `f(prompts, completions, **columns) -> list[float | None]` gives;
    None, and what is not finite, is no verdict.

    The function gets conversational prompts and completions, `completion_ids`, and the columns that
    are named here. It runs where it is called: what it guards against is its own affair.
    """

    function: str
    """`package.module:function`, such as trl.rewards:accuracy_reward."""
    columns: dict[str, Shown] = Field(default_factory=dict)
    """The columns that the function reads, each with the privileged field that fills it."""
    success_threshold: float
    """The reward from which on a response has succeeded."""

    @field_validator("function")
    @classmethod
    def is_a_plain_function(cls, name: str) -> str:
        if inspect.iscoroutinefunction(callable_named(name, "function")):
            raise ValueError(f"{name!r} is asynchronous; name a function that is not")
        return name

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        function: Callable[..., Any] = callable_named(self.function, "function")
        prompt = [
            {"role": message.role, "content": message.content}
            for message in problem.prompt.messages
        ]
        columns = {
            column: [getattr(problem.privileged, name)] * len(rollouts)
            for column, name in self.columns.items()
        }
        rewards = function(
            prompts=[prompt] * len(rollouts),
            completions=[[{"role": "assistant", "content": r.text}] for r in rollouts],
            completion_ids=[list(rollout.token_ids) for rollout in rollouts],
            **columns,
        )
        if len(rewards) != len(rollouts):
            raise ValueError(f"{self.function} gives {len(rewards)} rewards of {len(rollouts)}")
        return [self.verdict(reward) for reward in rewards]

    def verdict(self, reward: float | None) -> Verdict:
        if reward is None or not isfinite(reward):
            return Verdict("no_verdict", 0.0)
        value = float(reward)
        if value >= self.success_threshold:
            return Verdict("pass", value)
        return Verdict("fail", value, f"Your response is rated {value:g}, which is too low.")

    def check(self, problem: Problem) -> None:
        for column, name in self.columns.items():
            if not (getattr(problem.privileged, name) or "").strip():
                raise ValueError(
                    f"its {name}, which is the column {column!r}, is empty; let the adapter fill "
                    f"Privileged.{name}"
                )
