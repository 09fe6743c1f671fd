"""Problems from a file or a hub dataset, and the order in which a run meets them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated, cast

from pydantic import Field

from opd.config import callable_named, locate, nearest, part
from opd.errors import DataError, RecipeError
from opd.privileged import Problem

Row = Mapping[str, object]
"""One row of a dataset: column to value."""

Numbered = tuple[int, Row]
"""A row and its number, from 1; in JSON Lines the number of its line."""

Adapter = Callable[[Row], Problem]
"""Makes a problem of a row; raises KeyError for a missing column, ValueError for a wrong one."""

FILE_TYPES = (".jsonl", ".json", ".parquet")


@part
class Dataset:
    """Rows of a dataset, made into problems by an adapter."""

    dataset: str
    """A .jsonl, .json or .parquet file, or the name of a hub dataset."""
    adapter: str
    """`package.module:function` that makes a Problem of a row."""
    subset: str | None = None
    """Which of a hub dataset's subsets, where it has several; a file has none."""
    split: str = "train"
    """Which split of a hub dataset; a file is one split."""
    where: dict[str, str | int] = field(default_factory=dict)
    """Column to the value that a row must have there to be taken."""
    limit: Annotated[int, Field(gt=0)] | None = None
    """Problems at most, from the first row on."""

    def problems(self) -> tuple[Problem, ...]:
        """All problems, in the order of their rows. Raises DataError with file, row and column."""
        adapt = cast("Adapter", callable_named(self.adapter, "adapter"))
        rows = list(islice(self.rows(), None if self.where else self.limit))
        if not rows:
            raise DataError(f"{self.dataset}: there are no rows; give a dataset that has some")
        chosen = matching(rows, self.where, self.dataset)[: self.limit]
        problems = {n: adapted(adapt, row, f"{self.dataset}, row {n}") for n, row in chosen}
        refuse_repeated_ids(problems, self.dataset)
        return tuple(problems.values())

    def rows(self) -> Iterator[Numbered]:
        """The rows of the file or hub dataset."""
        path = Path(locate(self.dataset))
        if path.suffix not in FILE_TYPES and not path.exists():
            return self.hub_rows()
        if path.suffix not in FILE_TYPES or path.is_dir():
            known = ", ".join(FILE_TYPES)
            raise DataError(f"{self.dataset}: is no file of rows; give one that ends in {known}")
        if not path.exists():
            raise DataError(f"{self.dataset}: there is no such file; correct the path")
        return read_rows(path, self.dataset)

    def hub_rows(self) -> Iterator[Numbered]:
        # Imported here because it takes seconds, and local files do without it.
        from datasets import load_dataset

        try:
            rows = load_dataset(self.dataset, self.subset, split=self.split)
        except (OSError, ValueError) as error:
            cause = str(error).splitlines()[0]
            raise DataError(
                f"{self.dataset}: is no file here, and the hub does not give it ({cause}); "
                "check the name, subset, split and connection"
            ) from None
        return enumerate(cast("Iterable[Row]", rows), start=1)


def read_rows(path: Path, name: str) -> Iterator[Numbered]:
    """The rows of a local file; `name` stands for it in errors."""
    if path.suffix == ".jsonl":
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    place = f"{name}, row {number}"
                    yield number, as_row(parsed_json(line, place), place)
        return
    rows = parsed_json(path.read_bytes(), name) if path.suffix == ".json" else read_parquet(path)
    if not isinstance(rows, list):
        raise DataError(f"{name}: holds no list of rows; make it a JSON list of objects")
    for number, row in enumerate(cast("list[object]", rows), start=1):
        yield number, as_row(row, f"{name}, row {number}")


def read_parquet(path: Path) -> object:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: is no Parquet file ({error}); fetch it again") from None


def parsed_json(text: bytes, place: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is not JSON ({error}); correct or remove it") from None


def as_row(value: object, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place}: is no object of columns; write {{column: value, ...}}")
    return cast("Row", value)


def matching(rows: Sequence[Numbered], where: Mapping[str, str | int], name: str) -> list[Numbered]:
    """The rows that hold every value of `where`, compared as text."""
    matches = list(rows)
    for column, value in where.items():
        for number, row in matches:
            if column not in row:
                place = f"{name}, row {number}"
                raise DataError(f"{place}: column {column!r} is missing; {nearest(column, row)}")
        present = {str(row[column]) for _, row in matches}
        if str(value) not in present:
            near = nearest(str(value), present)
            raise DataError(f"{name}: no row has {value!r} in column {column!r}; {near}")
        matches = [(number, row) for number, row in matches if str(row[column]) == str(value)]
    return matches


def adapted(adapt: Adapter, row: Row, place: str) -> Problem:
    """The problem that the adapter makes of a row."""
    try:
        problem = adapt(row)
        check_prompt(problem)
    except KeyError as error:
        columns = ", ".join(row)
        raise DataError(f"{place}: column {error} is missing; the row has {columns}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{place}: {error}; correct the row or its adapter") from None
    return problem


def check_prompt(problem: Problem) -> None:
    """Raise ValueError or TypeError for what no student could be asked."""
    if not isinstance(problem, Problem):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"the adapter returns {type(problem).__name__}, not Problem")
    messages = problem.prompt.messages
    if not messages or messages[-1].role != "user":
        raise ValueError("the prompt does not end with a user's message")
    if not messages[-1].content.strip():
        raise ValueError("the question is empty")
    for message in messages:
        message.content.encode()  # a lone surrogate, which no tokenizer takes, fails here


def refuse_repeated_ids(problems: Mapping[int, Problem], name: str) -> None:
    """Raise DataError where two rows give one id: rewards find a problem by it."""
    first_row: dict[str, int] = {}
    for number, problem in problems.items():
        first = first_row.setdefault(problem.prompt.id, number)
        if first != number:
            raise DataError(
                f"{name}, row {number}: has the id {problem.prompt.id!r} of row {first}; "
                "remove one of the two"
            )


@dataclass(frozen=True, repr=False)
class Stream:
    """Problems in an order that depends on nothing but seed, step and batch size, so that a run
    resumes without any state. Every epoch is another shuffle."""

    problems: tuple[Problem, ...]
    seed: int

    def batch(self, step: int, size: int) -> tuple[Problem, ...]:
        """The `size` different problems of a step, counted from 0. An epoch gives every problem at
        most once; what does not fill a last batch waits for another epoch's shuffle.

        Raises RecipeError when there are fewer than `size` problems.
        """
        count = len(self.problems)
        if size > count:
            raise RecipeError(
                f"problems_per_step: {size} are wanted, but the dataset has {count}; lower it, or "
                "take more problems"
            )
        epoch, index = divmod(step, count // size)
        order = Random(f"{self.seed} {epoch}").sample(range(count), count)
        return tuple(self.problems[i] for i in order[index * size : (index + 1) * size])
