"""TRL's own reward functions give verdicts, and what they do not say is no zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from opd.config import build
from opd.errors import DataError, RecipeError
from opd.privileged import Privileged, Problem
from opd.reward import Judge, Reward
from opd.types import Message, Prompt, Rollout, Verdict
from rewards.trl import TRL

MESSAGES = (Message("system", "Be brief."), Message("user", "How many?"))
PROBLEM = Problem(Prompt("p", MESSAGES), Privileged(answer="$\\frac{1}{2}$", solution="A half."))


def rollouts(*texts: str) -> list[Rollout]:
    return [Rollout(PROBLEM.prompt, (1,), (2, 3), (0.0,), 0, "stop", text) for text in texts]


def trl(name: str, threshold: float = 1.0, **columns: Any) -> TRL:
    return TRL(function=name, columns=columns, success_threshold=threshold)


def own(name: str, **columns: Any) -> TRL:
    return trl(f"{__name__}:{name}", **columns)


def recorded(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
    assert prompts == [[{"role": m.role, "content": m.content} for m in MESSAGES]] * 2
    assert completions == [[{"role": "assistant", "content": text}] for text in ("a", "b")]
    assert completion_ids == [[2, 3], [2, 3]]
    assert columns == {"worked": ["A half."] * 2, "truth": ["$\\frac{1}{2}$"] * 2}
    return [0.25, 1.0]


def partial(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    return [None, float("nan"), float("inf"), 0.5, 2.0, -1.0]


def short(completions: Sequence[Any], **columns: Any) -> list[float]:
    return [1.0] * (len(completions) - 1)


async def awaited(completions: Sequence[Any], **columns: Any) -> list[float]:
    return [1.0] * len(completions)


def test_trls_accuracy_is_a_verdict():
    pytest.importorskip("trl")
    reward = trl("trl.rewards:accuracy_reward", solution="answer")
    texts = ("So \\boxed{\\frac{1}{2}}.", "\\boxed{0.5}", "\\boxed{\\frac{1}{3}}", "one half")
    found = Judge(reward, [PROBLEM])(rollouts(*texts))
    assert [v.status for v in found] == ["pass", "pass", "fail", "fail"]
    assert [v.reward for v in found] == [1.0, 1.0, 0.0, 0.0]
    assert not any("1}{2" in (v.feedback or "") for v in found)


def test_an_answer_that_trl_cannot_read_is_no_verdict():
    pytest.importorskip("trl")
    unread = Problem(PROBLEM.prompt, Privileged(answer="..."))
    reward = trl("trl.rewards:accuracy_reward", solution="answer")
    assert Judge(reward, [unread])(rollouts("\\boxed{1}")) == [Verdict("no_verdict", 0.0)]


def test_trls_think_format_is_a_verdict():
    pytest.importorskip("trl")
    found = trl("trl.rewards:think_format_reward")(
        PROBLEM, rollouts("<think>x</think>7", "<think>7")
    )
    assert [v.status for v in found] == ["pass", "fail"]


def test_a_function_gets_what_trl_gives_it():
    found = own("recorded", worked="solution", truth="answer")(PROBLEM, rollouts("a", "b"))
    assert found == [
        Verdict("fail", 0.25, "Your response is rated 0.25, which is too low."),
        Verdict("pass", 1.0),
    ]


def test_no_reward_is_no_zero():
    found = own("partial")(PROBLEM, rollouts(*"abcdef"))
    assert [v.status for v in found] == [*["no_verdict"] * 3, "fail", "pass", "fail"]
    assert [v.reward for v in found] == [0.0, 0.0, 0.0, 0.5, 2.0, -1.0]
    lenient = TRL(function=f"{__name__}:partial", success_threshold=-1.0)
    assert [v.success for v in lenient(PROBLEM, rollouts(*"abcdef"))][3:] == [True] * 3


def test_a_function_that_miscounts_gives_no_verdict():
    found = Judge(own("short"), [PROBLEM])(rollouts("a", "b"))
    assert [v.status for v in found] == ["no_verdict"] * 2


def test_what_cannot_be_is_refused_at_the_start():
    with pytest.raises(DataError, match=r"its demonstration, which is the column 'x', is empty"):
        Judge(own("partial", x="demonstration"), [PROBLEM])
    for name, said in (
        (f"{__name__}:awaited", "is asynchronous; name a function that is not"),
        ("trl_rewards:x", "needs the module 'trl_rewards'"),
    ):
        with pytest.raises(RecipeError, match=said):
            build(Reward, {"name": "rewards.trl:TRL", "function": name, "success_threshold": 1.0})
    with pytest.raises(RecipeError, match="success_threshold: TRL needs this key"):
        build(Reward, {"name": "rewards.trl:TRL", "function": f"{__name__}:partial"})
