"""Final answers: the table of verdicts, the policy behind it, and every gold answer on file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd.config import ROOT
from opd.errors import DataError
from opd.privileged import Privileged, Problem
from opd.problems import Dataset
from opd.reward import Judge
from opd.types import Finish, Message, Prompt, Rollout
from rewards.math import Boxed, grade

BENCHMARKS = Path(os.environ.get("OPD_BENCHMARKS", ROOT.parent / "shared" / "benchmarks"))

IN_BOXES = [
    ("204", "204", "pass"),
    ("204", "0204", "pass"),
    ("204", "204.0", "pass"),
    ("033", "33", "pass"),
    ("204", "205", "fail"),
    ("1/2", r"\frac12", "pass"),
    ("1/2", "0.5", "pass"),
    ("1/3", "0.333", "fail"),
    ("1/3", "0.3333333333", "fail"),
    (r"\frac{14}{3}", r"\dfrac{14}{3}", "pass"),
    (r"\frac{14}{3}", r"4\frac{2}{3}", "pass"),
    (r"\sqrt2", "1.41421356", "fail"),
    (r"2\sqrt3", r"\sqrt{12}", "pass"),
    (r"\pi", "3.14159", "fail"),
    ("(1,2)", "(1,2)", "pass"),
    ("(1,2)", "(2,1)", "fail"),
    (r"\{1,2\}", r"\{2,1\}", "pass"),
    ("1,2", "2,1", "pass"),
    (r"(3, \frac{\pi}{2})", r"\left(3,\frac{\pi}{2}\right)", "pass"),
    ("[0,1)", "[0,1)", "pass"),
    ("[0,1)", r"0\le x<1", "fail"),
    (r"x\in[0,1)", "[0,1)", "pass"),
    ("1,000", "1000", "pass"),
    ("1000000", "1,000,000", "pass"),
    ("10000", "10^4", "pass"),
    (r"10\%", "0.1", "pass"),
    ("50", r"50\%", "fail"),
    ("18", r"\$18", "pass"),
    (r"5\text{ cm}", "5", "pass"),
    ("70", r"70^\circ", "pass"),
    ("x=5", "5", "pass"),
    ("5", "x=5", "pass"),
    (r"\text{Evelyn}", r"\text{Evelyn}", "pass"),
    ("B", "B", "pass"),
    (r"\text{(C)}", "C", "pass"),
    ("x^2+2x+1", "(x+1)^2", "pass"),
    (
        r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}",
        r"\begin{pmatrix} -\frac13 \\ \frac23 \end{pmatrix}",
        "pass",
    ),
    ("2+3i", "3i+2", "pass"),
    ("p-q", "-(q-p)", "pass"),
    (r"-\infty", r"-\infty", "pass"),
    ("204", r"203\text{ or }204", "fail"),
    ("204", "203,204", "fail"),
    ("204", "", "no_answer"),
    ("204", r"\boxed{204}", "pass"),
    ("204", "200+4", "pass"),
    ("204", r"204+0\cdot x", "pass"),
    ("204", "204=203", "fail"),
    ("204", "203=204", "fail"),
    ("3", r"\int_0^3 1\,dx", "fail"),
    ("120", "5!", "pass"),
    ("0", "x", "fail"),
    ("0", "nan", "fail"),
    ("0", r"\text{nothing}", "fail"),
]
AS_WRITTEN = [
    ("204", r"\boxed{203}? Wait. It is \boxed{204}.", "pass"),
    ("204", r"\boxed{204}; no: \boxed{203}", "fail"),
    ("204", r"\boxed{1} \boxed{2} \boxed{204} \boxed{3}", "fail"),
    ("204", r"<think>\boxed{204}</think>I do not know.", "no_answer"),
    ("204", "The answer is 204.", "no_answer"),
    ("204", "", "no_answer"),
    ("204", r"\boxed{204", "no_answer"),
]
TABLE = [(gold, rf"So it is \boxed{{{box}}}.", status) for gold, box, status in IN_BOXES]
TABLE += AS_WRITTEN

POLICY = [
    # several boxes side by side are one answer
    ("204", r"\boxed{203} or \boxed{204}", "fail"),
    ("204", r"\boxed{203}, \boxed{204}", "fail"),
    ("204", r"\boxed{204} $\boxed{204}$", "pass"),
    ("1/2", r"\boxed{\frac12}, or \boxed{0.5}", "pass"),
    ("1,2", r"\boxed{2} and \boxed{1}", "pass"),
    ("204", r"\boxed{203 \boxed{204}}", "fail"),
    # an answer that does not commit
    ("204", r"\boxed{\text{about } 204}", "fail"),
    ("2", r"\boxed{\pm 2}", "fail"),
    ("2,-2", r"\boxed{\pm 2}", "pass"),
    ("2,-2", r"\boxed{2 \text{ or } -2}", "pass"),
    ("2,-2", r"\boxed{x = 2 \text{ or } x = -2}", "pass"),
    ("2,-2", r"\boxed{x = 2, -2}", "pass"),
    ("204", r"\boxed{203 204}", "fail"),
    ("407", r"\boxed{203 204}", "fail"),
    ("(2, 3)", r"\boxed{x = 2, y = 3}", "pass"),
    ("(2, 3)", r"\boxed{x = 3, y = 2}", "fail"),
    ("204", r"\boxed{203; 204}", "fail"),
    # relations
    ("x=5", r"\boxed{y=5}", "fail"),
    ("x=5", r"\boxed{x=4=5}", "fail"),
    ("204", r"\boxed{2x=204}", "fail"),
    ("204", r"\boxed{m+n=204}", "pass"),
    ("y=2x+3", r"\boxed{2x-y+3=0}", "pass"),
    ("5", r"\boxed{x \le 5}", "fail"),
    # work left undone
    ("10", r"\boxed{\sum_{n=1}^{4} n}", "fail"),
    ("24", r"\boxed{\prod_{n=1}^{4} n}", "fail"),
    ("10", r"\boxed{1+2+\dots+4}", "fail"),
    ("4", r"\boxed{\gcd(8,12)}", "fail"),
    (r"\lim_{x\to0} f", r"\boxed{\lim_{x \to 0} f}", "pass"),
    ("204", r"\boxed{9^{9^{9^9}}}", "fail"),
    # numbers
    (r"\frac{1}{2^{100}}", r"\boxed{\frac{1}{2^{101}}}", "fail"),
    (r"\frac13", r"\boxed{0.3333333333333}", "pass"),
    ("5000000", r"\boxed{5\text{ million}}", "pass"),
    ("5", r"\boxed{5\text{ million}}", "fail"),
    ("5", r"\boxed{5 million}", "fail"),
    (r"50\%", r"\boxed{50}", "pass"),
    (r"50\%", r"\boxed{\frac12}", "pass"),
    (r"50\%", r"\boxed{5}", "fail"),
    ("0.5", r"\boxed{50\%}", "pass"),
    (r"(\frac13, 2)", r"\boxed{(0.33333333, 2)}", "fail"),
    ("(100,200)", r"\boxed{(100, 200)}", "pass"),
    ("(100,200)", r"\boxed{100200}", "fail"),
    ("d/c", r"\boxed{\frac{d}{c}}", "pass"),
    # numbers in a base
    ("2516_8", r"\boxed{2516}", "pass"),
    ("2516_8", r"\boxed{2516_9}", "fail"),
    ("204", r"\boxed{204_8}", "fail"),
    # letters are no units
    ("5c", r"\boxed{5}", "fail"),
    ("5", r"\boxed{5c}", "fail"),
    ("12", r"\boxed{12ab}", "fail"),
    ("18", r"\boxed{18 apples}", "pass"),
    ("18", r"\boxed{18\text{ apples per day}}", "pass"),
    (r"15\mbox{ cm}^2", r"\boxed{15 \text{ square centimeters}}", "pass"),
    # words are no products of letters
    (r"\text{Evelyn}", r"\boxed{Eevlyn}", "fail"),
    ("east", r"\boxed{\textbf{East}.}", "pass"),
    ("B", r"\boxed{\text{(B) }12}", "pass"),
    ("B", r"\boxed{\text{(A) or (B)}}", "fail"),
    # a pair is ordered where it says so
    ("1,-2", r"\boxed{(-2,1)}", "fail"),
    ("1,-2", r"\boxed{(1,-2)}", "pass"),
]


def test_the_table_is_whole():
    assert len(TABLE) == 60


@pytest.mark.parametrize(("gold", "response", "status"), TABLE + POLICY)
def test_verdicts(gold: str, response: str, status: str):
    judged = grade(response, gold)
    assert judged.status == status
    assert judged.reward == float(status == "pass")
    assert (judged.feedback is None) == judged.success


@pytest.mark.parametrize(
    ("gold", "response", "words"),
    [
        ("7310", "", "You gave no final answer in \\boxed{}."),
        ("7310", r"\boxed{7311}", "Your answer '7311' is wrong."),
        ("7310", r"\boxed{1=2}", "Your answer '1=2' is a relation and not a value."),
        ("7310", r"\boxed{1,2}", "Your answer '1,2' gives several values where one is asked for."),
        ("7310", r"\boxed{1?}", "Your answer '1?' does not commit to its value."),
        ("7310", r"\boxed{1\dots}", "Your answer '1\\\\dots' leaves work undone."),
        ("7310", rf"\boxed{{{'1' * 600}}}", f"'{'1' * 80}...' is longer than 512 characters."),
    ],
)
def test_feedback_says_what_is_wrong_and_not_what_is_right(gold: str, response: str, words: str):
    assert (grade(response, gold).feedback or "").endswith(words)


@pytest.mark.parametrize(
    ("golds", "answers"),
    [
        ("7 x+1", ["204", "0204", "204.0", "x=204", r"204\text{ cm}", r"\boxed{204}", "200+4"]),
        ("7 x+1", [r"\frac12", "0.5", "1/2", r"\dfrac{1}{2}", r"\frac{2}{4}"]),
        ("7,8 x,y", ["1,2", "2, 1", r"\{1,2\}", r"1 \text{ and } 2"]),
        ("7 x+1", ["(x+1)^2", "x^2+2x+1", "1+x(x+2)"]),
        (r"7 \sqrt{3}", [r"2\sqrt3", r"\sqrt{12}"]),
        (r"\text{Bob} \text{Ann}", [r"\text{Eve}", "eve", r"\textbf{Eve}."]),
        ("A B", ["C", "(C)", r"\text{(C) }5"]),
    ],
)
def test_equal_answers_are_one_text_right_or_wrong(golds: str, answers: list[str]):
    """What a majority is taken over may not depend on which answer is the right one."""
    texts = {
        grade(rf"\boxed{{{answer}}}", gold).answer
        for answer in answers
        for gold in [*golds.split(), answers[0]]
    }
    assert len(texts) == 1 and None not in texts


def test_different_answers_are_different_texts():
    given = ["1", "2", "-1", "x", r"\frac12", "50", r"50\%", "(1,2)", "(2,1)", r"\text{one}", "x^2"]
    assert len({grade(rf"\boxed{{{answer}}}", "7").answer for answer in given}) == len(given)


@pytest.mark.parametrize(
    ("text", "finish", "status"),
    [
        ("The answer is 204.", "stop", "pass"),
        ("200 + 4 = 204\n#### 204", "stop", "pass"),
        ("204 or 205", "stop", "fail"),
        ("The answer is $\\sqrt{41616}$. I hope that it is 4.", "stop", "pass"),
        ("**Answer:** 204.", "stop", "pass"),
        ("The answer is 203 or 204.", "stop", "fail"),
        ("200 + 4 = 204", "length", "no_answer"),
        (r"\boxed{204", "stop", "no_answer"),
        (r"\boxed{203}, so 204", "stop", "fail"),
    ],
)
def test_an_answer_without_a_box_counts_only_where_it_is_asked_for(
    text: str, finish: Finish, status: str
):
    asked = problem("204")
    rollout = Rollout(asked.prompt, (), (), (), 0, finish, text)
    assert Boxed(takes_unboxed=True)(asked, [rollout])[0].status == status
    (strict,) = Boxed()(asked, [rollout])
    assert strict.status == ("fail" if r"\boxed{203}" in text else "no_answer")
    if finish == "length":
        assert strict.feedback == "You ran out of room before you gave a final answer in \\boxed{}."


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 50_000,
        r"\boxed{1}" * 50_000,
        r"\boxed{1} x " * 50_000,
        r"\boxed{1}" + " and" * 200_000 + r"\boxed{2}",
        r"\boxed{1}" + r"\text{" * 100_000 + r"\boxed{2}",
        r"\boxed{\boxed{" * 20_000 + "}}" * 20_000,
        "{" * 100_000 + "}" * 100_000,
        "answer is " * 100_000,
        "answer is " * 100_000 + "$",
        "answer: **" * 100_000,
        "answer is x" * 100_000,
        "1.2.3,4 " * 100_000,
        "$ " * 500_000,
        rf"\boxed{{5 {'aa ' * 160}!}}",
        rf"\boxed{{5 {'/ a ' * 120}}}",
        rf"\boxed{{{'(' * 500}}}",
        rf"\boxed{{{'x^' * 250}}}",
        rf"\boxed{{{'-' * 500}1}}",
        rf"\boxed{{5{'!' * 300}}}",
        "\\boxed{\0\ud800\u202e\uff11}",
    ],
    ids=range(20),
)
@pytest.mark.parametrize("takes_unboxed", [False, True])
def test_hostile_responses_are_judged_in_time(text: str, takes_unboxed: bool):
    assert grade(r"\boxed{x+2}", "x+1").status == "fail"
    started = time.process_time()  # of this process; what a worker may take is tested elsewhere
    verdict = grade(text, "204", takes_unboxed=takes_unboxed, deadline=0.5)
    assert time.process_time() - started < 1.0
    assert not verdict.success
    assert len(verdict.feedback or "") < 300


@given(
    st.text(alphabet="\\frac{}sqrt123456789x,.+-*/^_=<()[]% orand$", max_size=40),
    st.sampled_from(["204", "x+1", "1,2", "x=5", r"\text{Evelyn}", "B", r"5\%", "2516_8"]),
)
@settings(max_examples=150, deadline=None)
def test_no_response_makes_it_raise(text: str, gold: str):
    verdict = grade(rf"\boxed{{{text}}}", gold, takes_unboxed=True)
    assert verdict.success == (verdict.reward == 1.0)
    assert (verdict.status in ("pass", "no_verdict")) == (verdict.feedback is None)


def problem(answer: str | None) -> Problem:
    return Problem(Prompt("p", (Message("user", "?"),)), Privileged(answer=answer))


@pytest.mark.parametrize("answer", [None, " ", "$", r"\frac{1}{", "x ++ ^", "9" * 600])
def test_a_gold_answer_that_cannot_be_read_is_a_fault_of_the_dataset(answer: str | None):
    with pytest.raises(DataError, match="problem 'p': Boxed cannot judge it: it"):
        Judge(Boxed(), [problem(answer)])


def test_a_missed_deadline_is_no_verdict_and_is_not_remembered():
    asked = r"\frac{x^2-1}{x-1}", r"\boxed{x+1}"
    assert grade(asked[1], asked[0], deadline=1e-6).status == "no_verdict"
    assert grade(asked[1], asked[0], deadline=1e-6).status == "no_verdict"
    assert grade(asked[1], asked[0]).status == "pass"


def test_the_verifier_is_imported_by_workers_only():
    code = "import sys, rewards.math; print({'math_verify', 'antlr4'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr


def rows(name: str) -> list[dict[str, str]]:
    path = BENCHMARKS / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {BENCHMARKS}; set OPD_BENCHMARKS to the folder that has it")
    return [json.loads(line) for line in path.read_text().splitlines()]


def judged(name: str, reward: Boxed, responses: list[str]) -> list[str]:
    """The questions whose responses are not judged right."""
    adapter = "gsm8k" if name.startswith("gsm8k") else name.removesuffix("24").removesuffix("25")
    dataset = Dataset(dataset=str(BENCHMARKS / f"{name}.jsonl"), adapter=f"data.{adapter}:problem")
    problems = dataset.problems()
    judge = Judge(reward, problems)
    rollouts = [
        Rollout(asked.prompt, (), (), (), -1, "stop", text)
        for asked, text in zip(problems, responses, strict=True)
    ]
    return [
        rollout.prompt.question
        for rollout, verdict in zip(rollouts, judge(rollouts), strict=True)
        if not verdict.success
    ]


@pytest.mark.parametrize(("name", "count"), [("gsm8k_train", 7473), ("gsm8k_test", 1319)])
def test_every_worked_answer_of_gsm8k_is_right(name: str, count: int):
    worked = [row["answer"] for row in rows(name)]
    assert len(worked) == count
    assert judged(name, Boxed(takes_unboxed=True), worked) == []
    shown = [rf"{text} \boxed{{{text.rpartition('####')[2].strip()}}}" for text in worked]
    assert judged(name, Boxed(), shown) == []


def test_every_solution_of_math500_is_right():
    solutions = [row["solution"] for row in rows("math500")]
    assert len(solutions) == 500
    assert judged("math500", Boxed(), solutions) == []


def test_every_solution_of_aime_is_right_but_one_that_has_no_box():
    assert [
        question[:40]
        for question in judged("aime24", Boxed(), [row["solution"] for row in rows("aime24")])
    ] == ["Every morning Aya goes for a $9$-kilomet"]
    boxed = [rf"\boxed{{{row['answer']}}}" for row in rows("aime25")]
    assert len(boxed) == 30
    assert judged("aime25", Boxed(), boxed) == []


def test_no_answer_of_math500_passes_for_its_neighbour():
    answers = list(dict.fromkeys(row["answer"] for row in rows("math500")))
    passed = {
        (gold, other)
        for gold, other in zip(answers, answers[1:] + answers[:1], strict=True)
        if grade(rf"\boxed{{{other}}}", gold).status != "fail"
    }
    assert passed == set()
