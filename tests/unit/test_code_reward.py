"""A response is worth the program in its last block, judged by its problem's tests."""

from __future__ import annotations

import shutil

import pytest

from opd.config import build
from opd.errors import DataError, RecipeError, SandboxError
from opd.privileged import Case, Privileged, Problem, ProgramTests
from opd.reward import Judge, Reward
from opd.types import Finish, Message, Prompt, Rollout
from rewards.code import PassesTests

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not on the PATH"
)

TESTS = ProgramTests(("assert add(1, 2) == 3", "assert add(40, 2) == 42"), shown=1)
RIGHT = "```python\ndef add(a, b): return a + b\n```"
WRONG = "```python\ndef add(a, b): return 3\n```"


def problem(tests: ProgramTests | None, demonstration: str | None = None, name: str = "p"):
    prompt = Prompt(name, (Message("user", "?"),))
    return Problem(prompt, Privileged(tests=tests, demonstration=demonstration))


def rollout(text: str, finish: Finish = "stop", name: str = "p") -> Rollout:
    return Rollout(problem(None, name=name).prompt, (1,), (2,), (0.0,), 0, finish, text)


def test_every_rollout_gets_the_verdict_on_its_program():
    problems = [problem(TESTS, RIGHT, name) for name in "abc"]
    texts = [RIGHT, WRONG, "I do not know.", f"<think>{RIGHT}</think>", f"{WRONG}\nNo:\n{RIGHT}"]
    rollouts = [rollout(text, name=name) for text in texts for name in "abc"]
    rollouts.append(rollout("```python\ndef", "length", "a"))
    verdicts = Judge(PassesTests(), problems)(rollouts)
    wanted = ["pass", "fail", "no_answer", "no_answer", "pass"]
    assert [v.status for v in verdicts] == [s for s in wanted for _ in "abc"] + ["no_answer"]
    assert [v.reward for v in verdicts] == [float(v.status == "pass") for v in verdicts]
    assert all(v.answer is None for v in verdicts)
    assert verdicts[-1].feedback == (
        "You ran out of room before you closed a fenced code block with a program."
    )
    assert verdicts[6].feedback == "You gave no fenced code block with a program."


def test_hidden_tests_are_told_only_when_asked():
    for reward, quotes in ((PassesTests(), False), (PassesTests(reveals_hidden_tests=True), True)):
        (verdict,) = reward(problem(TESTS), [rollout(WRONG)])
        assert ("assert add(40, 2) == 42" in (verdict.feedback or "")) is quotes


def test_cases_are_run_as_programs_that_read():
    tests = ProgramTests(cases=(Case("1.5", "1.5"), Case("2", "2.0001")))
    echo = rollout("```\nprint(input())\n```")
    assert PassesTests()(problem(tests), [echo])[0].status == "fail"
    assert PassesTests(tolerance=1e-3)(problem(tests), [echo])[0].status == "pass"


def test_time_and_memory_are_limited_as_set():
    slow = rollout("```\nimport time\ndef add(a, b):\n    time.sleep(1.5)\n    return a + b\n```")
    one = ProgramTests(TESTS.assertions[:1])
    assert PassesTests(timeout=0.5)(problem(one), [slow])[0].status == "fail"
    assert PassesTests(timeout=60.0)(problem(one), [slow])[0].status == "pass"
    large = rollout("```\nx = bytes(200 << 20)\ndef add(a, b): return a + b\n```")
    assert PassesTests(memory=128)(problem(TESTS), [large])[0].status == "fail"
    assert PassesTests()(problem(TESTS), [large])[0].status == "pass"


REFUSED = [
    (problem(None), "it has no tests"),
    (problem(ProgramTests()), "it has no tests"),
    (problem(ProgramTests(("assert f()",), cases=(Case("", ""),))), "it has no tests, or both"),
    (problem(TESTS, "x = 1"), "its demonstration has no fenced program"),
    (problem(TESTS, WRONG), r"its own solution does not pass .*Hidden test 2 of 2 fails"),
    (problem(ProgramTests(("x = [2, 1]\nsort(x)\nassert x == [1, 2]",)),
             "```\ndef sort(x): x.sort()\n```"), "its own solution does not pass"),
    (problem(ProgramTests(("assert f(lambda x: x + 1) == 2",)),
             "```\ndef f(g): return g(1)\n```"), "its own solution does not pass"),
    (problem(ProgramTests(("assert f()",), setup="import no_such_module"),
             "```\ndef f(): return 1\n```"), "its own solution does not pass .*no verdict"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "cause"), REFUSED, ids=range(len(REFUSED)))
def test_a_problem_that_its_own_solution_fails_is_refused_at_the_start(bad: Problem, cause: str):
    with pytest.raises(DataError, match=f"problem 'p': PassesTests cannot judge it: {cause}"):
        Judge(PassesTests(), [bad])


def test_a_slow_solution_is_given_time_and_a_slow_answer_is_not():
    slow = "```python\nimport time\ndef add(a, b):\n    time.sleep(0.6)\n    return a + b\n```"
    judge = Judge(PassesTests(timeout=0.5), [problem(TESTS, slow)])
    assert [v.status for v in judge([rollout(slow)])] == ["fail"]


def test_solutions_are_left_alone_when_so_set():
    Judge(PassesTests(checks_solutions=False), [problem(TESTS, WRONG)])
    Judge(PassesTests(), [problem(TESTS)])


def test_without_a_box_a_run_does_not_start(monkeypatch: pytest.MonkeyPatch):
    def refuse(otherwise: str) -> None:
        raise SandboxError(f"no box, {otherwise}")

    monkeypatch.setattr("rewards.code.reward.isolation", refuse)
    with pytest.raises(SandboxError, match="no box, external"):
        Judge(PassesTests(otherwise="external"), [problem(TESTS)])


def test_a_recipe_names_it_with_bounds():
    built = build(Reward, {"name": "rewards.code:PassesTests", "timeout": 5.0})
    assert built == PassesTests(timeout=5.0)
    for key, value in (("timeout", 0), ("timeout", 1e9), ("memory", 1), ("tolerance", 1.0)):
        with pytest.raises(RecipeError, match=key):
            build(Reward, {"name": "rewards.code:PassesTests", key: value})
