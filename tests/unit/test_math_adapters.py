"""MATH-500, AIME and HMMT: rows become problems whose answers are asked for in a box."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.aime import problem as aime
from data.boxed import INSTRUCTION
from data.hmmt import problem as hmmt
from data.math500 import problem as math500
from opd.errors import DataError
from opd.privileged import Problem
from opd.problems import Dataset, Row

MATH500 = {
    "problem": " What is $1+1$? ",
    "solution": "It is $\\boxed{2}.$",
    "answer": "2",
    "subject": "Prealgebra",
    "level": 1,
    "unique_id": "test/prealgebra/1.json",
}
AIME = {"id": 60, "problem": "Find $m+n$.", "solution": "It is 33.", "answer": "033", "url": "u"}
HMMT = {"problem_idx": 1, "problem": "Compute.", "answer": "\\frac{1}{2}", "problem_type": ["A"]}


def test_math500():
    made = math500(MATH500)
    assert made.prompt.question == f"What is $1+1$?\n\n{INSTRUCTION}"
    assert made.prompt.id.startswith("math500-")
    assert made.privileged.answer == "2"
    assert made.privileged.solution == made.privileged.demonstration == "It is $\\boxed{2}.$"


def test_aime():
    made = aime(AIME)
    assert made.prompt.question == f"Find $m+n$.\n\n{INSTRUCTION}"
    assert (made.privileged.answer, made.privileged.solution) == ("33", "It is 33.")
    bare = aime({"problem": "Find $m+n$.", "answer": 33})
    assert (bare.privileged.answer, bare.privileged.solution) == ("33", None)
    assert bare.prompt == made.prompt
    assert aime({"problem": "P", "answer": "000"}).privileged.answer == "0"


def test_hmmt():
    made = hmmt(HMMT)
    assert made.prompt.question == f"Compute.\n\n{INSTRUCTION}"
    assert made.privileged.answer == "\\frac{1}{2}"
    assert hmmt({**HMMT, "answer": 103}).privileged.answer == "103"


@pytest.mark.parametrize(
    ("adapt", "row"), [(math500, MATH500), (aime, AIME), (hmmt, HMMT)], ids=["math", "aime", "hmmt"]
)
def test_a_prompt_holds_nothing_but_the_problem(adapt: Callable[[Row], Problem], row: Row):
    changed = {**dict.fromkeys(row, "changed"), "problem": row["problem"], "answer": "7"}
    assert adapt(changed).prompt == adapt(row).prompt
    assert adapt({**row, "problem": "Another?"}).prompt.id != adapt(row).prompt.id


@pytest.mark.parametrize(
    ("adapt", "row", "cause"),
    [
        (math500, {**MATH500, "answer": 2.0}, "column 'answer' holds"),
        (math500, {**MATH500, "solution": ""}, "column 'solution' holds no text"),
        (aime, {**AIME, "answer": "1000"}, "'1000', no whole number from 000 to 999"),
        (aime, {**AIME, "answer": "-1"}, "'-1', no whole number from 000 to 999"),
        (aime, {**AIME, "answer": "n"}, "'n', no whole number from 000 to 999"),
        (hmmt, {**HMMT, "answer": None}, "column 'answer' holds neither"),
        (hmmt, {**HMMT, "problem": " "}, "column 'problem' holds no text"),
    ],
)
def test_a_row_that_lacks_something_is_refused(
    adapt: Callable[[Row], Problem], row: Row, cause: str
):
    with pytest.raises(ValueError, match=cause):
        adapt(row)


def test_a_missing_column_is_named(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "Q", "answer": "1"}) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, row 1: column 'problem' is missing"):
        Dataset(dataset=str(path), adapter="data.hmmt:problem").problems()
