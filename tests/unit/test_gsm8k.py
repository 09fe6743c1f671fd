"""GSM8K: every real row becomes a problem whose own worked answer is judged right."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from data.gsm8k import problem
from opd.config import ROOT
from opd.errors import DataError
from opd.privileged import Problem
from opd.problems import Dataset
from opd.reward import Judge
from opd.types import Rollout
from rewards.number import Number

BENCHMARKS = Path(os.environ.get("OPD_BENCHMARKS", ROOT.parent / "shared" / "benchmarks"))
SAMPLE = "data/samples/gsm8k.jsonl"


def gsm8k(path: str) -> Dataset:
    return Dataset(dataset=path, adapter="data.gsm8k:problem")


def written(problems: Sequence[Problem], texts: Sequence[str]) -> list[Rollout]:
    return [
        Rollout(problem.prompt, (), (), (), -1, "stop", text)
        for problem, text in zip(problems, texts, strict=True)
    ]


def test_a_row_becomes_a_problem():
    made = problem({"question": " How many? ", "answer": "2*540=<<2*540=1080>>1,080\n#### 1,080"})
    assert made.prompt.question.startswith("How many?\n")
    assert "step by step" in made.prompt.question
    assert "\\boxed{}" in made.prompt.question
    assert made.privileged.solution == "2*540=1,080"
    assert made.privileged.answer == "1080"
    assert made.privileged.demonstration == "2*540=1,080\nThe final answer is \\boxed{1080}."


def test_an_id_depends_on_the_question_alone():
    one, other = (problem({"question": "Q", "answer": f"#### {n}"}) for n in (1, 2))
    assert one.prompt == other.prompt
    assert one.prompt.id != problem({"question": "R", "answer": "#### 1"}).prompt.id
    assert one.prompt.id == "gsm8k-4ae81572f06e"


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ({"question": "Q", "answer": "it is 3"}, "column 'answer' does not end with"),
        ({"question": "Q", "answer": "it is ####"}, "column 'answer' does not end with"),
        ({"question": "Q", "answer": None}, "column 'answer' holds no text"),
        ({"question": "", "answer": "#### 3"}, "column 'question' holds no text"),
    ],
)
def test_a_row_without_question_or_answer_is_refused(row: dict[str, object], cause: str):
    with pytest.raises(ValueError, match=cause):
        problem(row)


def test_the_sample_reads():
    assert [p.privileged.answer for p in gsm8k(SAMPLE).problems()] == [
        "34",
        "1080",
        "324",
        "83",
        "20",
    ]


@pytest.mark.parametrize(("name", "rows"), [("gsm8k_train", 7473), ("gsm8k_test", 1319)])
def test_every_real_row_is_read_and_its_worked_answer_judged_right(name: str, rows: int):
    path = BENCHMARKS / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {BENCHMARKS}; set OPD_BENCHMARKS to the folder that has it")
    problems = gsm8k(str(path)).problems()
    assert len(problems) == rows
    assert not [p for p in problems if "<<" in (p.privileged.solution or "")]
    judge = Judge(Number(), problems)
    shown = [p.privileged.demonstration or "" for p in problems]
    worked = [str(row["answer"]) for _, row in gsm8k(str(path)).rows()]
    for texts in (shown, worked):
        assert all(verdict.success for verdict in judge(written(problems, texts)))
    off = [f"\\boxed{{{p.privileged.answer}1}}" for p in problems]
    assert not any(verdict.success for verdict in judge(written(problems, off)))


def test_a_malformed_row_is_named(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "Q", "answer": "#### 1"}\n{"question": "R", "answer": "1"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2: column 'answer' does not end with"):
        gsm8k(str(path)).problems()
