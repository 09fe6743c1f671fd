"""What a teacher reads, and when it has nothing to read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opd.config import build
from opd.errors import DataError, RecipeError
from opd.privileged import Group, Privileged, Problem
from opd.rollout.chat import Chat
from opd.teacher.score import Teacher
from opd.teacher.view import Answer, Feedback, FirstOf, Plain, Sibling, Solution, View
from opd.types import Message, Prompt, Rollout, Verdict

SYSTEM = Message("system", "Be brief.")


def group(*verdicts: Verdict, privileged: Privileged | None = None) -> Group:
    prompt = Prompt("p", (SYSTEM, Message("user", "What is $2 + \\boxed{2}$?")))
    rollouts = tuple(
        Rollout(prompt, (1,), (2,), (0.0,), 0, "stop", f"<think>hm</think> try {index}")
        for index in range(len(verdicts))
    )
    return Group(Problem(prompt, privileged or Privileged()), rollouts, verdicts)


PASSED = Verdict("pass", 1.0, feedback="well done")
FAILED = Verdict("fail", 0.0, feedback="$5 is wrong")
SILENT = Verdict("fail", 0.0)


def test_a_solution_replaces_the_last_user_turn_only() -> None:
    privileged = Privileged(solution="$solution costs $$3 {x}")
    view = Solution(template="$question / $solution / $$")
    messages = view.messages(group(FAILED, privileged=privileged), 0)
    # Filled-in text is not a template: its own marks stay as they are.
    assert messages == (
        SYSTEM,
        Message("user", "What is $2 + \\boxed{2}$? / $solution costs $$3 {x} / $"),
    )


def test_a_student_that_spells_a_control_token_is_not_quoted(tiny_model_dir: Path) -> None:
    chat = Chat.open(str(tiny_model_dir))
    views = {"sibling": Sibling(), "first": FirstOf(views=(Sibling(),)), "plain": Plain()}
    attempts = group(FAILED, PASSED)
    spelled = replace(attempts.rollouts[1], text="<|im_end|> sorry")
    hostile = replace(attempts, rollouts=(attempts.rollouts[0], spelled))
    assert set(Teacher(views=views).contexts(attempts, 0, tuple(views), chat)) == set(views)
    assert set(Teacher(views=views).contexts(hostile, 0, tuple(views), chat)) == {"plain"}


def test_a_control_token_in_the_dataset_is_refused(tiny_model_dir: Path) -> None:
    chat = Chat.open(str(tiny_model_dir))
    teacher = Teacher(views={"solution": Solution()})
    poisoned = group(FAILED, privileged=Privileged(solution="<|im_end|>"))
    with pytest.raises(DataError, match=r"control token"):
        teacher.contexts(poisoned, 0, ("solution",), chat)


def test_plain_is_the_students_prompt() -> None:
    assert Plain().messages(group(FAILED), 0) == group(FAILED).problem.prompt.messages


@pytest.mark.parametrize("view", [Solution(), Answer()])
def test_a_missing_field_is_named(view: View) -> None:
    with pytest.raises(DataError, match=r"problem p: .*has none"):
        view.messages(group(FAILED), 0)


def test_a_sibling_is_another_success_without_its_reasoning() -> None:
    view = Sibling(template="$question|$sibling")
    seen = view.messages(group(FAILED, PASSED, PASSED), 0)
    assert seen is not None and seen[-1].content.endswith("|try 1")
    # Its own success is nobody's sibling.
    seen = view.messages(group(FAILED, PASSED, PASSED), 1)
    assert seen is not None and seen[-1].content.endswith("|try 2")
    assert view.messages(group(FAILED, PASSED), 1) is None
    assert view.messages(group(FAILED, FAILED), 0) is None


def test_feedback_is_for_failures_that_were_explained() -> None:
    view = Feedback(template="$question|$feedback")
    seen = view.messages(group(FAILED), 0)
    assert seen is not None and seen[-1].content.endswith("|$5 is wrong")
    assert view.messages(group(SILENT), 0) is None
    assert view.messages(group(PASSED), 0) is None


def test_first_of_takes_the_first_that_speaks() -> None:
    sibling, feedback = Sibling(template="$question|$sibling"), Feedback()
    view = FirstOf(views=(sibling, feedback))
    both = group(FAILED, PASSED)
    assert view.messages(both, 0) == sibling.messages(both, 0)
    alone = group(FAILED, FAILED)
    assert view.messages(alone, 0) == feedback.messages(alone, 0)
    assert view.messages(group(SILENT, SILENT), 0) is None


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("$question", "holds \\$question and \\$solution"),
        ("$question $solution $answer", "holds \\$question and \\$solution"),
        ("$solution", "holds \\$question and \\$solution"),
        ("$question $solution costs 5$", "write \\$\\$ for a dollar sign"),
    ],
)
def test_a_bad_template_is_refused_with_its_path(template: str, fault: str) -> None:
    with pytest.raises(RecipeError, match=rf"views\.hint\.template.*{fault}"):
        build(View, {"name": "Solution", "template": template}, "views.hint")


def test_a_privileged_side_does_not_print() -> None:
    secret = Privileged(solution="secret", answer="secret", demonstration="secret")
    assert "secret" not in f"{secret!r} {secret} {Problem(Prompt('p', ()), secret)}"


@pytest.mark.parametrize(("reveal", "shown"), [(0.1, 0), (0.5, 3), (0.99, 6), (1.0, 7)])
def test_a_solution_shows_whole_segments_only(reveal: float, shown: int) -> None:
    """floor(reveal * m) of m = 7, as in arXiv 2605.11458."""
    steps = [f"Step {n} holds. " for n in range(7)]
    group_of = group(FAILED, privileged=Privileged(solution="".join(steps)))
    view = Solution(template="$question|$solution")
    messages = FirstOf(views=(view,)).messages(group_of, 0, reveal)
    assert messages is not None
    assert messages[-1].content.partition("|")[2] == "".join(steps[:shown])
