"""Datasets: rows become problems, faults name file, row and column; streams repeat themselves."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from opd.config import RECIPES, build, dump, part
from opd.errors import DataError, RecipeError
from opd.privileged import Privileged, Problem
from opd.problems import VERBATIM_LENGTH, Adapter, Dataset, LeftOut, Row, Stream
from opd.types import Message, Prompt

ROWS: list[Row] = [
    {"id": "a", "question": "1+1", "family": "sums", "level": 1},
    {"id": "b", "question": "2*2", "family": "products", "level": 1},
    {"id": "c", "question": "1+2", "family": "sums", "level": 2},
]


def adapter(row: Row) -> Problem:
    question = str(row["question"])
    if question == "bad":
        raise ValueError("column 'question' is bad")
    prompt = Prompt(str(row["id"]), (Message("user", question),))
    return Problem(prompt, Privileged(answer="2"))


def lower(row: Row) -> Problem:
    return adapter({**row, "question": row["question"].lower()})  # type: ignore[attr-defined]


def written_by_assistant(row: Row) -> Problem:
    return Problem(Prompt("a", (Message("assistant", "2"),)), Privileged())


@part
class Twice(Adapter):
    """An adapter with a setting."""

    times: int = 2

    def __call__(self, row: Row) -> Problem:
        if row.get("level") == self.times:
            raise LeftOut("the level is the setting's")
        return adapter({**row, "question": str(row["question"]) * self.times})


def answering(row: Row) -> Problem:
    """The id is the question, as it is for real adapters."""
    prompt = Prompt(str(row["question"]), (Message("user", str(row["question"])),))
    return Problem(prompt, Privileged(answer=str(row["id"])))


def telling(row: Row) -> Problem:
    made = adapter(row)
    return replace(made, privileged=replace(Privileged(), **{str(row["family"]): row["question"]}))


def plain(row: Row) -> str:
    return "x"


def dataset(path: Path | str, adapter: str = "adapter", **options: object) -> Dataset:
    return Dataset(dataset=str(path), adapter=f"{__name__}:{adapter}", **options)  # type: ignore[arg-type]


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ids(problems: tuple[Problem, ...]) -> list[str]:
    return [problem.prompt.id for problem in problems]


def test_every_file_type_gives_the_same_problems(tmp_path: Path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    lines(tmp_path / "rows.jsonl", *ROWS)
    read = [dataset(tmp_path / f"rows.{t}").problems() for t in ("jsonl", "json", "parquet")]
    assert ids(read[0]) == ["a", "b", "c"]
    assert read[0] == read[1] == read[2]


def test_a_local_file_needs_no_datasets_package():
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from opd.problems import Dataset\n"
        "d = Dataset(dataset='data/samples/gsm8k.jsonl', adapter='data.gsm8k:problem')\n"
        "assert len(d.problems()) == 5"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=RECIPES.parent).returncode == 0


def test_where_and_limit_choose_rows(tmp_path: Path):
    path = lines(tmp_path / "rows.jsonl", *ROWS)
    assert ids(dataset(path, where={"family": "sums"}).problems()) == ["a", "c"]
    assert ids(dataset(path, where={"family": "sums", "level": 2}).problems()) == ["c"]
    assert ids(dataset(path, where={"family": "sums"}, limit=1).problems()) == ["a"]
    assert ids(dataset(path, where={"family": "products"}, limit=1).problems()) == ["b"]
    both = dataset(path, where={"family": ("products", "sums"), "level": (2,)})
    assert ids(both.problems()) == ["c"]
    assert ids(dataset(path, limit=2).problems()) == ["a", "b"]
    assert ids(dataset(path, limit=9).problems()) == ["a", "b", "c"]


def test_problems_keep_the_columns_that_are_asked_for(tmp_path: Path):
    path = lines(tmp_path / "rows.jsonl", *ROWS)
    kept = dataset(path, labels=("family", "level")).problems()
    assert [problem.labels["family"] for problem in kept] == ["sums", "products", "sums"]
    assert kept[2].labels["level"] == "2" and dataset(path).problems()[0].labels == {}
    with pytest.raises(DataError, match=r"row 1: column 'famly' is missing"):
        dataset(path, labels=("famly",)).problems()


def test_a_limit_reads_no_further(tmp_path: Path):
    path = lines(tmp_path / "rows.jsonl", *ROWS[:2])
    path.write_text(path.read_text() + "{")
    assert ids(dataset(path, limit=2).problems()) == ["a", "b"]


def test_rows_are_numbered_by_their_lines(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n\n   \n{{\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, row 4: is not JSON"):
        dataset(path).problems()


@pytest.mark.parametrize(
    ("row", "place", "cause"),
    [
        ('{"id": "x"', "row 2", "is not JSON"),
        ('{"id": "\udcff"}', "row 2", "is not JSON"),
        ("[" * 100_000, "row 2", "is not JSON"),
        ('["x"]', "row 2", "is no object of columns"),
        ('{"id": "x"}', "row 2", "column 'question' is missing; the row has id"),
        ('{"id": "x", "question": "bad"}', "row 2", "column 'question' is bad"),
        ('{"id": "x", "question": " "}', "row 2", "the question is empty"),
        ('{"id": "x", "question": "\\ud800"}', "row 2", "surrogates not allowed"),
        ('{"id": "a", "question": "x"}', "row 2", "has the id 'a' of row 1"),
    ],
)
def test_a_malformed_row_is_refused_by_number(tmp_path: Path, row: str, place: str, cause: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n{row}\n", errors="surrogateescape")
    with pytest.raises(DataError) as refused:
        dataset(path).problems()
    assert str(refused.value).startswith(f"{path}, {place}: ")
    assert cause in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("adapter", "cause"),
    [
        ("plain", "the adapter returns str, not Problem"),
        ("written_by_assistant", "does not end with a user's message"),
        ("lower", "'int' object has no attribute 'lower'"),
    ],
)
def test_an_adapter_that_cannot_use_a_row_is_named_by_it(tmp_path: Path, adapter: str, cause: str):
    path = lines(tmp_path / "rows.jsonl", {"id": "a", "question": 3})
    with pytest.raises(DataError, match=f"row 1: .*{cause}"):
        dataset(path, adapter).problems()


def test_a_filter_that_fits_no_row_offers_what_is_there(tmp_path: Path):
    path = lines(tmp_path / "rows.jsonl", *ROWS)
    with pytest.raises(DataError, match=r"'sum' in column 'family'; did you mean 'sums'\?"):
        dataset(path, where={"family": "sum"}).problems()
    with pytest.raises(DataError, match="'99' in column 'family'; choose from products, sums"):
        dataset(path, where={"family": "99"}).problems()
    with pytest.raises(DataError, match=r"'sum' in column 'family'; did you mean 'sums'\?"):
        dataset(path, where={"family": ("products", "sum")}).problems()
    with pytest.raises(DataError, match=r"row 1: column 'famly' is missing; did you mean 'family'"):
        dataset(path, where={"famly": "sums"}).problems()


def test_files_that_give_no_rows_are_refused(tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "object.json").write_text('{"rows": []}')
    (tmp_path / "broken.json").write_text("[")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "rows.csv").write_text("id\n1\n")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="there are no rows"):
        dataset(tmp_path / "empty.jsonl", where={"family": "sums"}).problems()
    for name, cause in (
        ("empty.jsonl", "there are no rows"),
        ("object.json", "holds no list of rows"),
        ("broken.json", "is not JSON"),
        ("broken.parquet", "is no Parquet file"),
        ("rows.csv", "is no file of rows; give one that ends in .jsonl, .json, .parquet"),
        ("folder.jsonl", "is no file of rows"),
        (".", "is no file of rows"),
        ("missing.jsonl", "there is no such file"),
    ):
        with pytest.raises(DataError, match=cause) as refused:
            dataset(tmp_path / name).problems()
        assert str(refused.value).startswith(str(tmp_path))


def test_a_hub_dataset_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch):
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"^someone/nothing: is no file here"):
        dataset("someone/nothing").problems()


def test_an_unknown_adapter_is_the_recipes_fault(tmp_path: Path):
    path = lines(tmp_path / "rows.jsonl", *ROWS)
    with pytest.raises(RecipeError, match="did you mean 'adapter'"):
        dataset(path, "adaptor").problems()


def test_an_adapter_is_a_function_or_a_part_with_settings(tmp_path: Path):
    path = lines(tmp_path / "rows.jsonl", *ROWS)
    name = f"{__name__}:Twice"
    for tree, asked in (
        (f"{__name__}:adapter", "1+1"),
        (name, "1+11+1"),
        ({"name": name}, "1+11+1"),
        ({"name": name, "times": 3}, "1+11+11+1"),
    ):
        made = build(Dataset, {"dataset": str(path), "adapter": tree})
        assert made.problems()[0].prompt.question == asked
        assert build(Dataset, dump(made)) == made
    with pytest.raises(RecipeError, match=r"^adapter\.time: Twice has no such key; did you mean"):
        build(Dataset, {"dataset": str(path), "adapter": {"name": name, "time": 3}})
    with pytest.raises(RecipeError, match=r"^adapter: .*:Stream' is no Adapter"):
        build(Dataset, {"dataset": str(path), "adapter": {"name": f"{__name__}:Stream"}})


def test_rows_that_an_adapter_leaves_out_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = lines(tmp_path / "rows.jsonl", ROWS[2], *ROWS[:2])
    with caplog.at_level(logging.WARNING):
        assert ids(dataset(path, "Twice").problems()) == ["a", "b"]
    assert f"{path}: 1 rows are left out: the level is the setting's" in caplog.text
    assert ids(dataset(path, "Twice", limit=1).problems()) == ["a"]
    with pytest.raises(DataError, match="every row is left out"):
        dataset(lines(path, ROWS[2]), "Twice").problems()


def test_problems_that_repeat_are_taken_once_where_their_answers_agree(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    rows = [{"question": q, "id": a} for q, a in zip("aabcbc", "110232", strict=True)]
    path = lines(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(DataError, match=r"row 2: has the id 'a' of row 1; .*take_agreed"):
        dataset(path, "answering").problems()
    with caplog.at_level(logging.WARNING):
        made = dataset(path, "answering", repeated="take_agreed").problems()
    assert [(problem.prompt.id, problem.privileged.answer) for problem in made] == [
        ("a", "1"),
        ("c", "2"),
    ]
    assert "4 rows are left out: another row asks the same" in caplog.text
    limited = dataset(path, "answering", repeated="take_agreed", limit=2)
    assert ids(limited.problems()) == ["a", "c"]


def test_a_file_is_the_one_on_record(tmp_path: Path):
    path = lines(tmp_path / "rows.jsonl", *ROWS)
    recorded = hashlib.sha256(path.read_bytes()).hexdigest()
    assert ids(dataset(path, sha256=recorded).problems()) == ["a", "b", "c"]
    lines(path, *reversed(ROWS))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataError) as refused:
        dataset(path, sha256=recorded, limit=1).problems()
    assert str(refused.value) == (
        f"{path}: its sha256 is {found}, and not {recorded[:12]}..., which is on record; "
        "fetch the file on record, or record this hash if the change is meant"
    )
    with pytest.raises(DataError, match="someone/nothing: a sha256 is of a file, and this is none"):
        dataset("someone/nothing", sha256=recorded).problems()
    with pytest.raises(RecipeError, match="sha256"):
        build(Dataset, {"dataset": "x", "adapter": "x:y", "sha256": recorded[:12]})


def test_a_hub_dataset_is_read_at_its_revision(monkeypatch: pytest.MonkeyPatch):
    import datasets

    asked = {}

    def load_dataset(name: str, subset: str | None, **options: object) -> list[Row]:
        asked.update(options, name=name, subset=subset)
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    made = dataset("someone/sums", split="test", revision="0a1b2c").problems()
    assert ids(made) == ["a", "b", "c"]
    assert asked == {
        **{"name": "someone/sums", "subset": None},
        **{"split": "test", "revision": "0a1b2c"},
    }


@pytest.mark.parametrize("field", ["solution", "demonstration"])
def test_a_prompt_that_holds_the_solution_is_refused(tmp_path: Path, field: str):
    row = {"id": "a", "family": field}
    for length, fits in ((VERBATIM_LENGTH, False), (VERBATIM_LENGTH - 1, True)):
        path = lines(tmp_path / "rows.jsonl", {**row, "question": "x" * length})
        if fits:
            assert ids(dataset(path, "telling").problems()) == ["a"]
            continue
        with pytest.raises(DataError, match=f"row 1: the prompt holds the whole {field};"):
            dataset(path, "telling").problems()


def stream(count: int, seed: int = 0) -> Stream:
    problems = (adapter({"id": i, "question": "x"}) for i in range(count))
    return Stream(tuple(problems), seed)


def test_an_epoch_gives_every_problem_once():
    epoch = [problem for step in range(4) for problem in stream(20).batch(step, 5)]
    assert Counter(ids(tuple(epoch))) == Counter(map(str, range(20)))
    second = [problem for step in range(4, 8) for problem in stream(20).batch(step, 5)]
    assert Counter(ids(tuple(second))) == Counter(map(str, range(20)))
    assert ids(tuple(epoch)) != ids(tuple(second))


def test_batches_depend_on_seed_step_and_size_alone():
    one, other = stream(50), stream(50)
    for step in (7, 0, 7, 123):
        one.batch(step - 1 if step else 9, 8)
        assert one.batch(step, 8) == other.batch(step, 8)
    assert ids(stream(50).batch(0, 8)) != ids(stream(50, seed=1).batch(0, 8))


def test_the_order_is_the_same_in_every_process_and_release():
    assert ids(stream(6).batch(0, 6)) == ["2", "5", "1", "3", "4", "0"]


def test_a_batch_never_holds_a_problem_twice():
    for step in range(40):
        assert len(set(ids(stream(7).batch(step, 3)))) == 3


def test_what_an_epoch_leaves_out_comes_later():
    met = Counter(p.prompt.id for step in range(400) for p in stream(7).batch(step, 4))
    assert min(met.values()) > 0.8 * 400 * 4 / 7


def test_a_batch_larger_than_the_dataset_is_refused():
    with pytest.raises(RecipeError, match="problems_per_step: 8 are wanted, but the dataset has 7"):
        stream(7).batch(0, 8)


def test_nothing_privileged_is_printed():
    assert "2" not in repr(stream(1).problems[0].privileged)
    assert "Privileged" not in repr(stream(1))
