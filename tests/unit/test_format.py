"""A form is kept or it is not, and what is worth more than its form is judged by another."""

from __future__ import annotations

import time

import pytest

from opd.config import build
from opd.errors import DataError, RecipeError
from opd.privileged import Privileged, Problem
from opd.reward import Judge, Reward
from opd.types import Message, Prompt, Rollout, Verdict
from rewards.format import Form, Format, Matches, OneBox, Thinks
from rewards.number import Number

PROBLEM = Problem(Prompt("p", (Message("user", "?"),)), Privileged(answer="7"))


def rollout(text: str) -> Rollout:
    return Rollout(PROBLEM.prompt, (1,), (2,), (0.0,), 0, "stop", text)


def verdict(reward: Reward, text: str) -> Verdict:
    (only,) = reward(PROBLEM, [rollout(text)])
    return only


@pytest.mark.parametrize(
    ("form", "text", "fault"),
    [
        (Thinks(), "<think>x</think>7", None),
        (Thinks(), " \n<think></think> 7", None),
        (Thinks(), "x</think>7", "Your thinking does not stand between one <think> and </think>."),
        (Thinks(), "<think>x 7", "Your thinking does not stand between one <think> and </think>."),
        (Thinks(), "7", "Your thinking does not stand between one <think> and </think>."),
        (
            Thinks(),
            "<think>a</think><think>b</think>7",
            "Your thinking does not stand between one <think> and </think>.",
        ),
        (Thinks(), "So <think>x</think>7", "Your response does not begin with <think>."),
        (Thinks(), "<think>x</think> \n", "Nothing follows </think>."),
        (Thinks(prompt_opens=True), "x</think>7", None),
        (
            Thinks(prompt_opens=True),
            "<think>x</think>7",
            "Your thinking does not stand between one <think> and </think>.",
        ),
        (Thinks(opening="<a>", closing="</a>"), "<a>x</a>7", None),
        (OneBox(), "\\boxed{7}", None),
        (OneBox(), "<think>\\boxed{1}</think>\\boxed{7}", None),
        (OneBox(), "7", "Your answer has 0 boxes where it should have one."),
        (OneBox(), "\\boxed{6} or \\boxed{7}", "Your answer has 2 boxes where it should have one."),
        (OneBox(), "\\boxed{\\boxed{7}}", "Your answer has 2 boxes where it should have one."),
        (Matches(pattern=r".*Answer: \d+"), "So\nAnswer: 7", None),
        (
            Matches(pattern=r".*Answer: \d+"),
            "Answer: 7!",
            "Your response has not the form that is asked for.",
        ),
    ],
)
def test_forms(form: Form, text: str, fault: str | None):
    judged = verdict(Format(forms=(form,)), text)
    assert judged == (Verdict("pass", 1.0) if fault is None else Verdict("fail", 0.0, fault))


def test_every_form_must_be_kept():
    reward = Format(forms=(Thinks(), OneBox()))
    assert verdict(reward, "<think></think>\\boxed{1}").success
    assert verdict(reward, "<think></think>1").feedback == (
        "Your answer has 0 boxes where it should have one."
    )
    assert not verdict(reward, "\\boxed{1}").success


def test_another_reward_judges_what_keeps_the_form():
    reward = Format(forms=(OneBox(),), reward=Number())
    texts = ("7", "\\boxed{7}", "\\boxed{6}", "\\boxed{7}\\boxed{7}", "\\boxed{}")
    found = reward(PROBLEM, [rollout(text) for text in texts])
    assert [v.status for v in found] == ["fail", "pass", "fail", "fail", "no_answer"]
    assert reward(PROBLEM, [rollout("7")])[0].status == "fail"
    with pytest.raises(DataError, match="its answer is no number"):
        Judge(reward, [Problem(PROBLEM.prompt, Privileged(answer="x"))])
    with pytest.raises(DataError, match="has no forms to demand"):
        Judge(Format(forms=()), [PROBLEM])


def test_a_pattern_that_takes_for_ever_gives_no_verdict():
    reward = Format(forms=(Matches(pattern=r"(?:a|aa)+c"),))
    started = time.process_time()
    (late, good) = Judge(reward, [PROBLEM])([rollout("a" * 400 + "b"), rollout("aac")])
    assert time.process_time() - started < 4.0
    assert (late.status, good.status) == ("no_verdict", "pass")


def test_a_recipe_names_forms():
    forms = ["Thinks", {"name": "Matches", "pattern": ".*"}, {"name": "OneBox"}]
    tree = {"name": "rewards.format:Format", "forms": forms, "reward": "rewards.number:Number"}
    assert build(Reward, tree) == Format(
        forms=(Thinks(), Matches(pattern=".*"), OneBox()), reward=Number()
    )
    with pytest.raises(RecipeError, match=r"reward\.forms\.0\.pattern: is no regular expression"):
        forms[0] = {"name": "Matches", "pattern": "("}
        build(Reward, tree, "reward")


def test_what_verdicts_depend_on_is_told_through_a_form():
    """The stamp of programs that ran without a box above all."""

    class Stamped(Number):
        @property
        def concurrency(self) -> int:
            return 3

        def provenance(self) -> dict[str, str]:
            return {"sandbox": "UNSANDBOXED"}

    wrapped = Format(forms=(OneBox(),), reward=Stamped())
    assert wrapped.provenance() == {"sandbox": "UNSANDBOXED"}
    assert wrapped.concurrency == 3
    alone = Format(forms=(OneBox(),))
    assert not alone.provenance() and alone.concurrency == 1
