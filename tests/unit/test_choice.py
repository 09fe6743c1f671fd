"""A chosen letter is found where it is said, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.errors import DataError
from opd.privileged import Privileged, Problem
from opd.reward import Judge
from opd.types import Finish, Message, Prompt, Rollout, Verdict
from rewards.choice import Choice


def judged(text: str, finish: Finish = "stop", answer: str = "C") -> Verdict:
    problem = Problem(Prompt("p", (Message("user", "?"),)), Privileged(answer=answer))
    rollout = Rollout(problem.prompt, (1,), (2,), (0.0,), 0, finish, text)
    (only,) = Choice()(problem, [rollout])
    return only


PASSES = [
    *("C", "(C)", "C.", "C)", "C. Paris", "**C**", "\n C \n", "(c)", "(C) Paris", "Option C"),
    *("\\boxed{C}", "\\boxed{(C)}", "\\boxed{C.}", "\\boxed{\\text{C}}", "\\boxed{\\textbf{(C)}}"),
    *("\\boxed{C. Paris}", "\\boxed{c}", "$\\boxed{\\mathrm{C}}$", "\\boxed{A}? No: \\boxed{C}"),
    *("The answer is C.", "The answer is (C) Paris", "the correct answer is: C", "Answer: C"),
    *("**Answer:** C", "**Answer: C**", "Answer:\nC", "The answer is option C", "answer = C"),
    *("The answer is **C**, as A is wrong.", "The answer is C because A is wrong."),
    *("A is wrong, the answer is B. No, the answer is C.", "Not A, not B.\nC", "A. no\n(C)."),
    *("<think>The answer is A</think>C", "<think>\\boxed{A}</think>The answer is C."),
    *("The answer is C\nfor the reasons above.", "\\boxed{A} was tried, so \\boxed{C} or else"),
]
FAILS = [
    *("B", "(A)", "The answer is D.", "\\boxed{B}", "\\boxed{Z}", "\\boxed{12}", "\\boxed{Paris}"),
    *("C or D", "A, C", "C/D", "C and D", "(C) or (D)", "(B), (C)", "C, D, or E", "\\boxed{C, D}"),
    *("\\boxed{C or D}", "\\boxed{A}, \\boxed{C}", "\\boxed{A} or \\boxed{C}", "\\boxed{A C}"),
    *("$\\boxed{A}$ and $\\boxed{C}$", "\\boxed{A}\\boxed{C}", "The answer is A or C."),
    *("The answer is C, or D.", "The answer is (A)/(C)", "The answer is C. No, the answer is A."),
    *("\\boxed{\\text{C or D}}", "\\boxed{not C}", "\\boxed{C}, so \\boxed{B}"),
]
NO_ANSWERS = [
    *(
        "",
        "A dog",
        "Consider C",
        "CC",
        "The answer is a city.",
        "The answer is not C.",
        "C++ it is",
    ),
    *(
        "The answer is either C or D.",
        "I think it could be C or maybe D.",
        "\\boxed{C",
        "\\boxed{}",
    ),
    *(
        "The answer is C. But then my answer is unclear.",
        "A. no\nB. no\nC. Paris",
        "Cats",
        "\\boxed",
    ),
    *("The answer is A dog", "Answer:", "<think>C</think>", "<think>The answer is C</think> Sure."),
]


@pytest.mark.parametrize(
    ("text", "status"),
    [(text, "pass") for text in PASSES]
    + [(text, "fail") for text in FAILS]
    + [(text, "no_answer") for text in NO_ANSWERS],
)
def test_a_choice_is_read(text: str, status: str):
    verdict = judged(text)
    assert verdict.status == status
    assert verdict.reward == float(status == "pass")
    assert (verdict.feedback is None) == (status == "pass")


@pytest.mark.parametrize(
    ("text", "status"),
    [("C", "no_answer"), ("The answer is C", "no_answer"), ("\\boxed{C}", "pass")],
)
def test_a_cut_response_has_chosen_only_in_a_box(text: str, status: str):
    assert judged(text, "length").status == status


def test_equal_choices_are_equal_texts():
    assert {judged(text).answer for text in PASSES} == {"C"}
    assert judged("\\boxed{(b) Rome}").answer == "B"
    assert judged("A or B").answer is None


@pytest.mark.parametrize("answer", ["C", "(C)", "c", "C.", "\\text{C}"])
def test_an_answer_may_be_written_as_a_choice(answer: str):
    assert judged("\\boxed{C}", answer=answer).success
    assert not judged("\\boxed{B}", answer=answer).success


@pytest.mark.parametrize("answer", [None, "", "2", "Paris", "A or B", "K", "None"])
def test_an_answer_that_is_no_choice_is_refused(answer: str | None):
    problem = Problem(Prompt("p", (Message("user", "?"),)), Privileged(answer=answer))
    with pytest.raises(DataError, match="its answer is no letter of ABCDEFGHIJ"):
        Judge(Choice(), [problem])


@given(
    st.text(alphabet="ABCabc()[].,/:;!or nd\\boxed{}$*\n &|"), st.sampled_from(["stop", "length"])
)
def test_no_response_makes_it_raise_or_tells_the_answer(text: str, finish: Finish):
    verdict = judged(text, finish, "J")
    assert verdict.status in ("fail", "no_answer")
    assert "J" not in (verdict.feedback or "")


@given(st.sampled_from("ABCDEFGHIJ"), st.sampled_from(["{}", "({})", "\\boxed{{{}}}", "{}."]))
def test_a_choice_passes_if_and_only_if_it_is_the_answer(letter: str, form: str):
    assert judged(form.format(letter)).success == (letter == "C")


@pytest.mark.parametrize(
    "text",
    ["(" * 100_000, "C or " * 30_000, "\\boxed{" * 20_000, "answer is " * 20_000, "{" * 10**5],
)
def test_long_responses_are_judged_at_once(text: str):
    import time

    started = time.perf_counter()
    judged(text)
    assert time.perf_counter() - started < 1.0
