"""What is planted in a dataset is found by row, what is not there is not, and no text is shown."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from opd.audit import Lengths, check_data
from opd.cli import main
from opd.config import ROOT
from opd.errors import DataError, RecipeError
from opd.overlap import normalised, repeated, same_question, shared_words, without_template

ADAPTER = (
    "{name: data.columns:Columns, columns: {q: prompt, s: solution, a: answer},"
    " instruction: Think long and put the answer at the very end of what you write please.}"
)
FILLER = "one two three four five six seven eight nine ten eleven twelve"


def file(path: Path, *questions: str | tuple[str, str]) -> str:
    """Rows of questions, or of questions and answers."""
    pairs = [(q, "7") if isinstance(q, str) else q for q in questions]
    rows = [{"q": q, "s": "A secret solution.", "a": a} for q, a in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def found(name: str, **options: object) -> tuple[bool, dict[str, str], str]:
    """Whether a run could begin, each finding's count and first rows, and all that was printed."""
    text = io.StringIO()
    sound = check_data(Console(file=text, width=300), name, **{"adapter": ADAPTER, **options})  # type: ignore[arg-type]
    cells = [line.strip("│").split("│") for line in text.getvalue().splitlines() if "│" in line]
    findings = {cell[0].strip(): ": ".join(c.strip() for c in cell[1:3]) for cell in cells}
    return sound, findings, text.getvalue()


def test_a_sound_dataset_has_nothing_found(tmp_path: Path):
    name = file(tmp_path / "rows.jsonl", "How many?", "How much?", "How long?", "Or not?")
    sound, findings, printed = found(name, reward="rewards.number:Number")
    assert sound
    counts = {key: said for key, said in findings.items() if key not in ("prompt", "solution")}
    assert counts.pop("answer") == "characters: 4"
    assert counts == dict.fromkeys(counts, "0: ") and len(counts) == 6
    assert hashlib.sha256(Path(name).read_bytes()).hexdigest() in printed
    assert "4 rows, 4 problems" in printed


def test_planted_faults_are_found_by_row(tmp_path: Path):
    name = file(
        tmp_path / "rows.jsonl",
        *("How many?", "How much?", "  how   MANY? ", ("How much?", "8"), "How long?"),
        *(("Pi?", "about three"), "The answer is 7, is it not?", ("Is abcdefg it?", "abcdefg")),
        *(("7 is 7", "7"), ("Result: 7.5", "7"), ("Is \\boxed{7} right?", "7")),
    )
    sound, findings, printed = found(name, reward="rewards.number:Number")
    assert not sound
    assert findings["rows that repeat an id"] == "1: 4"
    assert findings["questions that repeat an earlier one"] == "2: 3, 4"
    assert findings["of these, with another answer"] == "1: 4"
    assert findings["answers that Number cannot use"] == "2: 6, 8"
    assert findings["prompts in which the answer stands"] == "3: 7, 8, 11"
    assert "secret" not in printed and "How" not in printed


def test_rows_that_cannot_be_read_are_counted_and_the_rest_is_read(tmp_path: Path):
    path = Path(file(tmp_path / "rows.jsonl", "How many?", "How much?", "How long?"))
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        first + b'{"q": \n' + b'{"q": "\xff"}\n' + second + b"[]\n" + b'{"q": "x"}\n' + third
    )
    sound, findings, printed = found(str(path))
    assert not sound
    assert findings["rows that cannot be read"] == "4: 2, 3, 5, 6"
    assert "row 2: is not JSON" in printed
    assert "7 rows, 3 problems" in printed


def test_repeats_stop_a_run_unless_it_takes_them_once(tmp_path: Path):
    name = file(tmp_path / "rows.jsonl", "How many?", "How many?")
    assert not found(name)[0]
    sound, findings, _ = found(name, overrides=["repeated=take_agreed"])
    assert sound and findings["rows that repeat an id"] == "1: 2"


def test_rows_that_an_adapter_leaves_out_are_said(tmp_path: Path):
    row = {"problem": "Q?", "generated_solution": "So 4.", "expected_answer": None}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    options = "{name: data.openmathreasoning:OpenMathReasoning, without_answer: leave_out}"
    sound, _, printed = found(str(tmp_path / "rows.jsonl"), adapter=options)
    assert sound and "rows left out: column 'expected_answer' is empty" in printed
    assert "1 rows, 0 problems" in printed


def test_overlap_with_evaluation_sets_is_found(tmp_path: Path):
    ours = file(
        tmp_path / "train.jsonl",
        *("How many eggs?", f"Say {FILLER} now", f"Say {FILLER}", "Who?", "Why?", "When?"),
    )
    theirs = file(
        tmp_path / "test.jsonl",
        *("how many\neggs", f"{FILLER}: now!", "Where?", "Which?", "What?"),
    )
    sound, findings, printed = found(ours, against=[theirs])
    assert sound
    assert findings["questions that test.jsonl asks too"] == "1: 1"
    assert findings["13 words in a row as in test.jsonl"] == "1: 2"
    assert "there rows 2; 1 different" in printed
    _, findings, _ = found(ours, against=[theirs], words=12)
    assert findings["12 words in a row as in test.jsonl"] == "2: 2, 3"


def test_an_evaluation_set_may_have_its_own_adapter(tmp_path: Path):
    sample = ROOT / "data" / "samples" / "gsm8k.jsonl"
    question = json.loads(sample.read_text().splitlines()[2])["question"]
    ours = file(tmp_path / "train.jsonl", "How many?", question, "How long?")
    _, findings, _ = found(ours, against=[f"data.gsm8k:problem={sample}"])
    assert findings["questions that gsm8k.jsonl asks too"] == "1: 2"
    assert findings["13 words in a row as in gsm8k.jsonl"] == "1: 2"
    with pytest.raises(DataError, match=r"gsm8k\.jsonl, row 1: column 'question' is not in"):
        found(ours, against=[str(sample)])


def test_without_an_adapter_columns_are_listed(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"q": "x", "n": 1}\n{"q": "", "m": [1]}\n{\n')
    sound, findings, printed = found(str(tmp_path / "rows.jsonl"), adapter=None)
    assert not sound
    assert findings["rows that cannot be read"] == "1: 3"
    assert "1 text, 1 empty" in printed and "1 list" in printed and "1 int" in printed


def test_lengths_are_those_of_the_model_that_is_named(tmp_path: Path, tiny_model_dir: Path):
    name = file(tmp_path / "rows.jsonl", "1+1?", "1+11?", ("2?<|im_end|>", "7"))
    sound, findings, printed = found(name, model=str(tiny_model_dir))
    assert not sound
    assert findings[f"prompts that {tiny_model_dir} cannot read"] == "1: 3"
    assert "control token '<|im_end|>'" in printed
    assert findings["solution"] == "tokens: 3"


def test_the_verb_says_by_its_exit_code_whether_a_run_could_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    name = file(tmp_path / "rows.jsonl", "How many?", "How much?")
    assert main(["data", "check", name]) == 0
    assert main(["data", "check", name, "--adapter", ADAPTER]) == 0
    assert main(["data", "check", name, "limit=1", "--adapter", "data.gsm8k:problem"]) == 4
    assert main(["data", "check", str(tmp_path / "none.jsonl")]) == 4
    assert main(["data", "check", name, "--adapter", "data.gsm8k:problems"]) == 2
    assert main(["data", "check", name, "limit=none", "--adapter", ADAPTER]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_question_that_makes_no_sense_is_the_recipes_fault(tmp_path: Path):
    name = file(tmp_path / "rows.jsonl", "How many?")
    with pytest.raises(RecipeError, match=r"--reward: 'rewards\.number:number' is no Reward"):
        found(name, reward="rewards.number:number")
    with pytest.raises(RecipeError, match="Dataset has no such key"):
        found(name, overrides=["splitt=test"])


@pytest.mark.parametrize(
    ("lengths", "high"), [([5], 5), (range(1, 101), 95), (range(1, 21), 19), ([9, 1], 9)]
)
def test_the_95th_percentile_is_counted(lengths: Sequence[int], high: int):
    assert Lengths("x", list(lengths), "tokens").high == high


def test_templates_are_not_compared():
    ask = "Put it in a box."
    first = {1: f"A?\n\n{ask}", 2: f"B?\n\n{ask}", 3: f"C?\n\n{ask}"}
    second = {1: f"B?\n\n{ask}"}
    stripped = without_template(first, second)
    assert stripped == [{1: "A?", 2: "B?", 3: "C?"}, {1: "B?"}]
    assert same_question(*stripped) == {2: 1}
    assert without_template({1: "A?\n\nsame", 2: "B?\n\nsame"}) == [
        {1: "A?\n\nsame", 2: "B?\n\nsame"}
    ]
    assert without_template(dict.fromkeys(range(9), "A?")) == [dict.fromkeys(range(9), "A?")]


def test_questions_that_differ_by_a_sign_are_different():
    assert normalised("$1+1$?") == normalised("1 + 1") != normalised("1 - 1")
    assert repeated({1: "1+1", 2: "1-1", 3: "1+1.", 5: "1 - 1"}) == {3: 1, 5: 2}


words = st.lists(st.sampled_from("abcd"), max_size=12)


@given(words, words, st.integers(1, 5))
def test_shared_words_are_what_a_search_for_every_window_finds(
    ours: list[str], theirs: list[str], count: int
):
    windows = [ours[i : i + count] for i in range(len(ours) - count + 1)]
    others = [theirs[i : i + count] for i in range(len(theirs) - count + 1)]
    expected = {5: 3} if any(window in others for window in windows) else {}
    assert shared_words({5: " ".join(ours)}, {3: ", ".join(theirs)}, count) == expected
