"""What a teacher reads, and when it has nothing to read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opd.config import build, load_recipe
from opd.errors import DataError, RecipeError
from opd.privileged import Group, Privileged, Problem
from opd.recipe import Recipe
from opd.rollout.chat import Chat
from opd.teacher.score import Teacher
from opd.teacher.view import (
    Answer,
    Demonstration,
    Feedback,
    FirstOf,
    Instruction,
    Matching,
    OtherProblem,
    Partial,
    Plain,
    Sibling,
    Solution,
    Together,
    View,
    without_boxes,
)
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


def with_lengths(attempts: Group, *lengths: int) -> Group:
    rollouts = zip(attempts.rollouts, lengths, strict=True)
    return replace(attempts, rollouts=tuple(replace(r, token_ids=(2,) * n) for r, n in rollouts))


def shown(view: View, of: Group, index: int) -> str | None:
    messages = view.messages(of, index)
    return None if messages is None else messages[-1].content.partition("|")[2]


def test_siblings_that_failed_are_numbered() -> None:
    views = [Sibling(template="$question|$sibling", when="failure", number=n) for n in (1, 2, 3)]
    lost = Verdict("no_verdict", 0.0)
    attempts = group(FAILED, PASSED, SILENT, lost, Verdict("no_answer", 0.0))
    assert [shown(view, attempts, 1) for view in views] == ["try 0", "try 2", "try 4"]
    # The scored rollout is never among them, nor one that nobody judged.
    assert [shown(view, attempts, 0) for view in views] == ["try 2", "try 4", None]


def test_the_shortest_sibling_is_counted_in_tokens() -> None:
    attempts = with_lengths(group(PASSED, PASSED, FAILED, FAILED), 9, 7, 8, 4)
    failed = Sibling(template="$question|$sibling", when="failure", order="shortest")
    passed = Sibling(template="$question|$sibling", order="shortest")
    assert [shown(failed, attempts, n) for n in range(4)] == ["try 3", "try 3", "try 3", "try 2"]
    assert [shown(passed, attempts, n) for n in range(3)] == ["try 1", "try 0", "try 1"]


def test_a_sibling_that_is_for_failures_is_not_shown_to_a_success() -> None:
    view = Sibling(template="$question|$sibling", shown_for="failures")
    attempts = group(PASSED, PASSED, FAILED)
    assert [view.messages(attempts, index) is None for index in range(3)] == [True, True, False]
    assert view.messages(attempts, 2) == Sibling(template=view.template).messages(attempts, 2)


def test_a_demonstration_is_a_whole_response() -> None:
    written = Privileged(solution="2 + 2", demonstration="<think>2 + 2</think> 4")
    seen = Demonstration(template="$question|$demonstration").messages(
        group(FAILED, privileged=written), 0
    )
    assert seen is not None and seen[-1].content.endswith("|<think>2 + 2</think> 4")
    with pytest.raises(DataError, match="shows its demonstration, but it has none"):
        Demonstration().messages(group(FAILED), 0)


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
    privileged = Privileged(solution="".join(steps), answer="42")
    view = Solution(template="$question|$solution", partial_template="$question|$solution|$answer")
    messages = FirstOf(views=(view,)).messages(group(FAILED, privileged=privileged), 0, reveal)
    assert messages is not None
    beside = "" if shown == 7 else "|42"
    assert messages[-1].content.partition("|")[2] == "".join(steps[:shown]) + beside


SIBLING = Sibling(template="right: $sibling", shows_question=False)
FEEDBACK = Feedback(template="wrong: $feedback", shows_question=False)


def test_blocks_stand_together_where_they_have_something_to_say() -> None:
    view = Together(template="$question|$blocks", blocks=(SIBLING, FEEDBACK), between=" / ")
    both = group(FAILED, PASSED, PASSED)
    assert shown(view, both, 0) == "right: try 1 / wrong: $5 is wrong"
    assert shown(view, both, 1) == "right: try 2"
    assert shown(view, group(FAILED, SILENT), 0) == "wrong: $5 is wrong"
    assert shown(view, group(SILENT, SILENT), 0) is None


def test_blocks_that_spell_a_control_token_drop_out(tiny_model_dir: Path) -> None:
    teacher = Teacher(views={"both": Together(blocks=(SIBLING, FEEDBACK))})
    chat = Chat.open(str(tiny_model_dir))
    told = group(FAILED, PASSED)
    hostile = group(Verdict("fail", 0.0, feedback="<|im_end|>"), PASSED)
    assert set(teacher.contexts(told, 0, ("both",), chat)) == {"both"}
    assert teacher.contexts(hostile, 0, ("both",), chat) == {}


def test_a_reference_may_stand_without_the_question() -> None:
    view = Solution(template="ref: $solution", shows_question=False)
    seen = view.messages(group(FAILED, privileged=Privileged(solution="see")), 0)
    assert seen == (SYSTEM, Message("user", "ref: see"))
    half = group(FAILED, privileged=Privileged(solution="One. Two.", answer="2"))
    seen = view.messages(half, 0, reveal=0.5)
    assert seen == (SYSTEM, Message("user", "ref: One. \n\nFinal answer: 2"))
    own = Solution(template="$solution", partial_template="$solution|$answer", shows_question=False)
    assert own.messages(half, 0, reveal=0.5) == (SYSTEM, Message("user", "One. |2"))


def test_a_template_that_shows_the_question_all_the_same_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"views\.alone.*shows_question is false"):
        build(View, {"name": "Solution", "shows_question": False}, "views.alone")


def test_an_instruction_is_all_that_stands_beside_the_question() -> None:
    view = Instruction(template="Briefly: $question")
    told = view.messages(group(FAILED), 0)
    assert told == (SYSTEM, Message("user", "Briefly: What is $2 + \\boxed{2}$?"))
    alone = Instruction(template="$question")
    assert alone.messages(group(FAILED), 0) == Plain().messages(group(FAILED), 0)


@pytest.mark.parametrize(("steps", "shown_steps"), [(7, 4), (4, 2), (2, 1)])
def test_half_a_solution_by_hand(steps: int, shown_steps: int) -> None:
    """ceil(share * m) of m, as in arXiv 2605.20643."""
    written = [f"Step {n} gives \\boxed{{{n}}}. " for n in range(steps)]
    of = group(FAILED, privileged=Privileged(solution="".join(written)))
    view = Partial(template="$question|$partial")
    assert shown(view, of, 0) == "".join(f"Step {n} gives . " for n in range(shown_steps))
    # However much is asked for, the last one is never shown.
    most = shown(Partial(template="$question|$partial", share=1.0), of, 0)
    assert most == "".join(f"Step {n} gives . " for n in range(steps - 1))


def test_one_segment_has_no_part() -> None:
    assert Partial().messages(group(FAILED, privileged=Privileged(solution="4")), 0) is None


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("so \\boxed{\\frac{1}{2}} is it", "so  is it"),
        ("\\boxed{1} and \\boxed{2}", " and "),
        ("never closed \\boxed{1 + {2}", "never closed "),
        ("none", "none"),
    ],
)
def test_boxes_go_with_the_braces_inside_them(text: str, rest: str) -> None:
    assert without_boxes(text) == rest


def other_problems(*answers: str) -> list[Problem]:
    return [
        Problem(
            Prompt(f"o{n}", (Message("user", f"q{n}"),)),
            Privileged(solution=f"s{n}", answer=answer),
        )
        for n, answer in enumerate(answers)
    ]


def test_another_problem_is_another_with_another_answer() -> None:
    own = group(FAILED, privileged=Privileged(solution="own", answer="4"))
    pool = [*other_problems("4", "5", "4", "6"), own.problem]
    seen = []
    for number in (1, 2):
        view = OtherProblem(template="$question|$other", show="answer", number=number)
        view.open(pool)
        assert shown(view, own, 0) == shown(view, own, 0)
        seen.append(shown(view, own, 0))
    assert sorted(map(str, seen)) == ["5", "6"]
    third = FirstOf(views=(OtherProblem(number=3),))
    third.open(pool)
    with pytest.raises(DataError, match="shows other problem number 3, but 2 have another answer"):
        third.messages(own, 0)


def test_a_worked_example_has_its_question() -> None:
    own = group(FAILED, privileged=Privileged(answer="4"))
    view = OtherProblem(template="$question|$other")
    view.open([*other_problems("5"), own.problem])
    assert shown(view, own, 0) == "q0\n\ns0"
    alone = Together(
        template="$question|$blocks",
        blocks=(OtherProblem(template="$other", show="solution", shows_question=False),),
    )
    alone.open([*other_problems("5"), own.problem])
    assert shown(alone, own, 0) == "s0"


def test_what_is_shown_whole_is_shown_as_ever() -> None:
    privileged = Privileged(solution="One. Two. Three.", answer="3")
    view, shown_whole = Solution(partial_template="$question $solution $answer"), Solution()
    attempts = group(FAILED, privileged=privileged)
    assert view.messages(attempts, 0, 1.0) == shown_whole.messages(attempts, 0)
    # No answer is asked for where none is shown.
    assert view.messages(group(FAILED, privileged=Privileged(solution="One.")), 0) is not None
    with pytest.raises(DataError, match=r"shows its answer"):
        view.messages(group(FAILED, privileged=Privileged(solution="One. Two.")), 0, 0.5)


def test_rounding_takes_no_segment_away() -> None:
    steps = [f"Step {n} holds. " for n in range(100)]
    privileged = Privileged(solution="".join(steps), answer="")
    view = Solution(partial_template="$question|$solution|$answer")
    messages = view.messages(group(FAILED, privileged=privileged), 0, 0.29)
    assert messages is not None and messages[-1].content.count("Step") == 29


def test_a_partial_template_holds_the_answer() -> None:
    with pytest.raises(RecipeError, match=r"partial_template.*\$question and \$answer and \$sol"):
        build(View, {"name": "Solution", "partial_template": "$question $solution"}, "views.hint")


def test_a_teacher_may_think_where_the_student_does_not(tiny_model_dir: Path) -> None:
    silent = Chat.open(str(tiny_model_dir), thinking=False)
    loud = Chat.open(str(tiny_model_dir), thinking=True)
    asked = group(FAILED)
    for thinking, chat in ((None, silent), (False, silent), (True, loud)):
        teacher = Teacher(views={"plain": Plain()}, thinking=thinking)
        (prompt,) = teacher.contexts(asked, 0, ("plain",), silent).values()
        assert prompt == chat.prompt_ids(asked.problem.prompt.messages)
    assert silent.prompt_ids(asked.problem.prompt.messages) != prompt
    views: dict[str, View] = {"plain": Plain(), "other": Plain()}
    teacher = Teacher(views=views, thinking=True, thinking_by_view={"other": False})
    found = teacher.contexts(asked, 0, ("plain", "other"), silent)
    assert found == {
        "plain": loud.prompt_ids(asked.problem.prompt.messages),
        "other": silent.prompt_ids(asked.problem.prompt.messages),
    }


@pytest.mark.parametrize("key", ["thinking_by_view={plan: true}", "weights_by_view={plan: Live}"])
def test_what_is_said_of_no_view_is_refused(key: str) -> None:
    with pytest.raises(RecipeError, match=f"{key.partition('=')[0]} names the view 'plan', but"):
        build(Recipe, load_recipe("opsd", [f"teacher.{key}"]))


def labelled(**labels: str) -> Problem:
    return replace(group(PASSED, privileged=Privileged(answer="4")).problem, labels=labels)


def test_a_view_of_some_problems_alone() -> None:
    sums, products = labelled(family="sums", level="2"), labelled(family="products", level="2")
    view = Matching(view=Answer(template="$question $answer"), where={"family": "sums", "level": 2})
    view.open((sums, products))
    seen = [view.messages(Group(p, (), ()), 0) for p in (sums, products)]
    assert seen[1] is None and seen[0] is not None and seen[0][-1].content.endswith(" 4")
    either = Matching(view=Plain(), where={"family": ("sums", "products")})
    assert all(either.messages(Group(p, (), ()), 0) for p in (sums, products))


def test_problems_that_a_view_cannot_tell_apart_are_refused() -> None:
    view = Matching(view=Plain(), where={"family": "sums"})
    with pytest.raises(DataError, match=r"do not keep; set problems\.labels=\[family\]"):
        view.open((labelled(level="2"),))
    with pytest.raises(DataError, match="no problem has"):
        view.open((labelled(family="products"),))
    other = Matching(view=OtherProblem(), where={"family": "sums"})
    other.open((labelled(family="sums"),))
    with pytest.raises(DataError, match="other problem number 1"):
        other.messages(Group(labelled(family="sums"), (), ()), 0)
