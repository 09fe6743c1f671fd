"""Rewards never raise over a response, never credit a wrong one, never tell the answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from threading import Barrier
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.errors import DataError, SandboxError
from opd.privileged import Privileged, Problem
from opd.reward import Judge, Reward
from opd.types import Finish, Message, Prompt, Rollout, Verdict
from rewards.exact import Exact
from rewards.number import Number, number


def problem(answer: str | None, name: str = "p") -> Problem:
    return Problem(Prompt(name, (Message("user", "?"),)), Privileged(answer=answer))


def rollout(text: str, finish: Finish = "stop", name: str = "p") -> Rollout:
    return Rollout(problem(None, name).prompt, (1,), (2,), (0.0,), 0, finish, text)


def verdict(reward: Reward, answer: str, text: str, finish: Finish = "stop") -> Verdict:
    (only,) = reward(problem(answer), [rollout(text, finish)])
    return only


@pytest.mark.parametrize(
    ("text", "finish", "status"),
    [
        ("20-5=15;#15", "stop", "pass"),
        ("#3;#15", "stop", "pass"),
        ("# 15 \n", "stop", "pass"),
        ("#15", "length", "pass"),
        ("#14", "stop", "fail"),
        ("#15;#3", "stop", "fail"),
        ("#15.0", "stop", "fail"),
        ("15", "stop", "no_answer"),
        ("20-5=15;", "length", "no_answer"),
        ("#15;#", "stop", "no_answer"),
        ("", "stop", "no_answer"),
    ],
)
def test_exact_reads_what_follows_the_last_marker(text: str, finish: Finish, status: str):
    judged = verdict(Exact(), "15", text, finish)
    assert judged.status == status
    assert judged.reward == float(status == "pass")


def test_exact_takes_another_marker():
    assert verdict(Exact(marker="####"), "B", "# A\n#### B").status == "pass"
    assert verdict(Exact(marker="####"), "B", "# B").status == "no_answer"


NUMBERS = [
    ("18", "\\boxed{18}", "pass"),
    ("18", "so $18$, \\boxed{ \\$18.00 }.", "pass"),
    ("18", "\\boxed{17} Wait. \\boxed{18}", "pass"),
    ("18", "\\boxed{18} No: \\boxed{17}", "fail"),
    ("18", "\\boxed{\\boxed{18}}", "pass"),
    ("18", "\\boxed{18} or \\boxed{", "pass"),
    ("18", "} \\{ \\boxed{18}", "pass"),
    ("18", "\\boxed{18\\}", "no_answer"),
    ("18", "\\boxed{\\{18\\}}", "fail"),
    ("18", "\\boxed{\\text{18 dollars}}", "pass"),
    ("18", "\\boxed{18\\text{ dollars per day}}", "pass"),
    ("18", "\\boxed{17 or 18}", "fail"),
    ("18", "\\boxed{17,18}", "fail"),
    ("18", "\\boxed{1718}", "fail"),
    ("18", "\\boxed{2x}", "fail"),
    ("120", "\\boxed{5!}", "fail"),
    ("5", "\\boxed{5!}", "fail"),
    ("18", "\\boxed{x}", "fail"),
    ("18", "\\boxed{}, that is 18", "no_answer"),
    ("18", "\\boxed{18", "no_answer"),
    ("18", "\\boxed18", "no_answer"),
    ("1080", "\\boxed{1,080}", "pass"),
    ("1,080", "\\boxed{1080}", "pass"),
    ("1080", "\\boxed{1{,}080}", "pass"),
    ("1080", "\\boxed{1,08}", "fail"),
    ("50", "\\boxed{50\\%}", "pass"),
    ("-3", "\\boxed{-3}", "pass"),
    ("-3", "\\boxed{\N{MINUS SIGN}3}", "pass"),
    ("-3", "\\boxed{3}", "fail"),
    ("0.1", "\\boxed{.10}", "pass"),
    ("0.5", "\\boxed{\\frac{1}{2}}", "pass"),
    ("-1/2", "\\boxed{-\\dfrac{1}{2}}", "pass"),
    ("14", "\\boxed{4\\frac{2}{3}}", "fail"),
    ("0.333", "\\boxed{1/3}", "fail"),
    ("0", "\\boxed{1/0}", "fail"),
    ("18", "\\boxed{9e1}", "fail"),
    ("18", "9 + 9 = 18\n#### 18", "pass"),
    ("18", "#### 17\n#### 18\n9", "pass"),
    ("18", "#### 18 and 9", "fail"),
    ("18", "####", "no_answer"),
    ("18", "#### 9, \\boxed{18}", "pass"),
    ("18", "The answer is $18.", "pass"),
    ("1080", "He keeps $1,080.", "pass"),
    ("5", "20-15=5", "pass"),
    ("15", "so 20-15", "pass"),
    ("-15", "so it is -$15.", "pass"),
    ("18", "18, I think, not 17", "fail"),
    ("18", "I do not know", "no_answer"),
    ("18", "", "no_answer"),
    ("18", "<think>\\boxed{18}</think>I do not know", "no_answer"),
    ("18", "<think>\\boxed{17}</think>\\boxed{18}", "pass"),
]


@pytest.mark.parametrize(("answer", "text", "status"), NUMBERS)
def test_number_compares_the_final_number_exactly(answer: str, text: str, status: str):
    judged = verdict(Number(), answer, text)
    assert judged.status == status
    assert judged.reward == float(status == "pass")


def test_a_response_that_was_cut_answers_only_where_it_says_so():
    assert verdict(Number(), "18", "9 + 9 = 18", "length").status == "no_answer"
    assert verdict(Number(), "18", "\\boxed{18}, because", "length").status == "pass"


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 50_000,
        "\\boxed{1}" * 50_000,
        "{" * 100_000 + "}" * 100_000,
        "1.2.3,4 " * 100_000,
        "9" * 1_000_000,
        "1," * 300_000,
        "\\boxed{" + "9" * 1_000_000 + "}",
        "\\boxed{5 " + "a" * 180 + "!}",
        "\\boxed{5 " + "aa " * 60 + "!}",
        "\\boxed" + " " * 500_000,
        "$ " * 500_000,
        "\\boxed{9^{9^{9^9}}}",
        "\\boxed{1e99999999}",
        "\\boxed{100000000!}",
        "\\boxed{\\frac{1}{" + "0" * 100 + "}}",
        "\\boxed{__import__('os').abort()}",
        "\0\ud800\u202e\\boxed{\uff11}",
    ],
    ids=range(17),
)
@pytest.mark.parametrize("reward", [Number(), Exact(marker="boxed")], ids=["number", "exact"])
def test_hostile_responses_are_judged_at_once(reward: Reward, text: str):
    started = time.perf_counter()
    judged = verdict(reward, "204", text)
    assert time.perf_counter() - started < 1.0
    assert judged.status in ("fail", "no_answer")
    assert len(judged.feedback or "") < 200


@given(st.text(alphabet="\\boxed{}#1234567890.,/-+$% abc<>\n"), st.sampled_from(["stop", "length"]))
def test_no_response_makes_a_reward_raise(text: str, finish: Finish):
    for reward in (Number(), Exact()):
        judged = verdict(reward, "204", text, finish)
        assert judged.success == (judged.reward == 1.0)
        assert (judged.feedback is None) == judged.success


@given(st.integers(), st.integers(1, 10**6))
def test_number_reads_what_python_writes(top: int, bottom: int):
    if abs(top) < 10**39:
        assert number(str(top)) == top
        assert number(f"{top:,}") == top
        assert number(f"{top}/{bottom}") == Fraction(top, bottom)


@pytest.mark.parametrize("reward", [Number(), Exact()], ids=["number", "exact"])
@pytest.mark.parametrize("text", ["#12", "\\boxed{12}", "12", "words", ""])
def test_feedback_never_tells_the_answer(reward: Reward, text: str):
    feedback = verdict(reward, "7310", text).feedback
    assert feedback is not None
    assert "7310" not in feedback


def test_feedback_says_what_went_wrong():
    assert verdict(Exact(), "15", "#14").feedback == "Your answer '14' is wrong."
    assert verdict(Exact(), "15", "14").feedback == "You gave no final answer."
    cut = verdict(Exact(), "15", "14", "length").feedback
    assert cut == "You ran out of room before you gave a final answer."


def test_feedback_tells_the_reference_where_it_is_to():
    told = Exact(tells="solution")
    asked = Problem(problem(None).prompt, Privileged(answer="15", solution="k20b5"))
    verdicts = told(asked, [rollout("#14"), rollout("#15"), rollout("15")])
    assert [v.feedback for v in verdicts] == ["k20b5", None, "k20b5"]
    assert [v.status for v in verdicts] == ["fail", "pass", "no_answer"]
    told.check(asked)
    with pytest.raises(ValueError, match="no solution to tell"):
        told.check(problem("15"))


@pytest.mark.parametrize(
    ("reward", "texts"),
    [(Exact(), ["#14", "# 14 ", "7#14"]), (Number(), ["\\boxed{1/2}", "#### 0.50", "it is .5"])],
)
def test_equal_answers_are_one_text_for_a_majority(reward: Reward, texts: list[str]):
    for right in ("0.5", "14", "3"):
        assert len({verdict(reward, right, text).answer for text in texts}) == 1
    assert verdict(reward, "3", texts[0]).answer != verdict(reward, "3", "#### 3").answer
    assert verdict(reward, "3", "none").answer is None


@pytest.mark.parametrize(
    ("reward", "answer"), [(Exact(), None), (Exact(), " "), (Number(), None), (Number(), "many")]
)
def test_a_problem_that_cannot_be_judged_is_refused_at_the_start(
    reward: Reward, answer: str | None
):
    with pytest.raises(DataError, match=r"problem 'p': .* cannot judge it: .*Privileged\.answer"):
        Judge(reward, [problem(answer)])


class Moody(Reward):
    """Fails on some texts."""

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        texts = [rollout.text for rollout in rollouts]
        if "raise" in texts:
            raise RuntimeError(problem.privileged.answer)
        if "short" in texts:
            return []
        return [Verdict("pass", float(text)) for text in texts]


@pytest.mark.parametrize("broken", ["raise", "short", "nan", "inf", "words"])
def test_a_failing_reward_gives_no_verdict_and_spoils_no_other(
    broken: str, caplog: pytest.LogCaptureFixture
):
    judge = Judge(Moody(), [problem("secret")])
    with caplog.at_level(logging.WARNING):
        verdicts = judge([rollout("0.5"), rollout(broken), rollout("1")])
    assert [v.status for v in verdicts] == ["pass", "no_verdict", "pass"]
    assert [v.reward for v in verdicts] == [0.5, 0.0, 1.0]
    assert "problem 'p'" in caplog.text
    assert "secret" not in caplog.text


def test_a_judge_keeps_order_over_several_problems():
    judge = Judge(Exact(), [problem("1", "a"), problem("2", "b")])
    rollouts = [rollout(f"#{text}", name=name) for text, name in ("1a", "1b", "2b", "2a")]
    assert [v.status for v in judge(rollouts)] == ["pass", "fail", "pass", "fail"]
    assert judge([]) == []


class Counting(Moody):
    """Notes how often each text is judged."""

    def __init__(self) -> None:
        self.judged: list[str] = []

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        self.judged += [rollout.text for rollout in rollouts]
        return super().__call__(problem, rollouts)


def test_what_a_run_has_not_drawn_is_judged_once_unless_its_grader_failed():
    reward = Counting()
    judge = Judge(reward, [problem("1", "a"), problem("1", "b")])
    rows = [("1", "a", -1), ("2", "a", 0), ("words", "a", -1), ("1", "b", -1)]
    rollouts = [replace(rollout(t, name=name), policy_step=step) for t, name, step in rows]
    first = judge(rollouts)
    assert [v.reward for v in first] == [1.0, 2.0, 0.0, 1.0]
    before = len(reward.judged)
    assert judge(rollouts) == first
    assert set(reward.judged[before:]) == {"2", "words"}
    judge([replace(rollouts[0], finish="length")])
    assert reward.judged[-1] == "1"


class Waiting(Exact):
    """Judges only when three problems are judged at once; answers late for early problems."""

    @property
    def concurrency(self) -> int:
        return 3

    barrier: ClassVar[Barrier] = Barrier(3)

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        self.barrier.wait(30.0)
        time.sleep(0.02 * (3 - int(problem.privileged.answer or 0)))
        return super().__call__(problem, rollouts)


def test_a_judge_judges_as_many_problems_at_once_as_its_reward_allows():
    problems = [problem(str(n), f"p{n}") for n in range(1, 4)]
    rollouts = [rollout(f"#{n % 2}", name=f"p{1 + n % 3}") for n in range(9)]
    at_once = Judge(Waiting(), problems)(rollouts)
    assert at_once == Judge(Exact(), problems)(rollouts)
    assert [v.status for v in at_once].count("pass") == 1


class Failing(Exact):
    @property
    def concurrency(self) -> int:
        return 2

    error: ClassVar[Exception]

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        if problem.prompt.id == "b":
            raise self.error
        return super().__call__(problem, rollouts)

    def check(self, problem: Problem) -> None:
        if problem.prompt.id in "bd":
            raise ValueError(f"not {problem.prompt.id}")


class Unchecked(Failing):
    def check(self, problem: Problem) -> None:
        pass


def test_faults_among_problems_judged_at_once_are_those_of_judging_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
):
    problems = [problem("1", name) for name in "abcd"]
    with pytest.raises(DataError, match="problem 'b': Failing cannot judge it: not b"):
        Judge(Failing(), problems)
    judge = Judge(Unchecked(), problems)
    rollouts = [rollout("#1", name=name) for name in "abcd"]
    monkeypatch.setattr(Failing, "error", RuntimeError(), raising=False)
    assert [v.status for v in judge(rollouts)] == ["pass", "no_verdict", "pass", "pass"]
    monkeypatch.setattr(Failing, "error", SandboxError("no box"), raising=False)
    with pytest.raises(SandboxError, match="no box"):
        judge(rollouts)
    with pytest.raises(DataError, match="no problem 'q'"):
        judge([*rollouts, rollout("#1", name="q")])


def test_a_judge_refuses_rollouts_of_other_problems():
    with pytest.raises(DataError, match="no problem 'q'"):
        Judge(Exact(), [problem("1")])([rollout("#1", name="q")])


def test_a_judge_prints_nothing_privileged():
    assert "secret" not in repr(Judge(Exact(), [problem("secret")]))
