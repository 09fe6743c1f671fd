"""Problems from a file or a hub dataset, and the order in which a run meets them."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from opd.config import build, callable_named, locate, nearest, part
from opd.errors import DataError, RecipeError, first_line
from opd.privileged import Problem
from opd.rows import sha256_of

logger = logging.getLogger(__name__)

Row = Mapping[str, object]
"""One row of a dataset: column to value."""

Wanted = str | int | tuple[str | int, ...]
"""A value, or several of which any will do."""

Numbered = tuple[int, Row]
"""A row and its number, from 1; in JSON Lines the number of its line."""

Refusal = Callable[[int, DataError], None]
"""What becomes of the fault of one row: it is raised, or it is kept and the row passed over."""

FILE_TYPES = (".jsonl", ".json", ".parquet")

VERBATIM_LENGTH = 60
"""Characters from which on a privileged text that stands in a prompt stands there by mistake."""


def raised(number: int, fault: DataError) -> None:
    """A fault that nobody keeps."""
    raise fault


class Adapter(ABC):
    """Makes problems of rows. One without settings may be a plain function."""

    @abstractmethod
    def __call__(self, row: Row) -> Problem:
        """The problem of a row. Raises KeyError for a missing column, ValueError for a wrong one,
        LeftOut for a row that a setting of the adapter leaves out."""


class LeftOut(Exception):
    """A row that the adapter's own settings leave out; it says why, in the same words for every
    such row."""


@part
class Dataset:
    """Rows of a dataset, made into problems by an adapter."""

    dataset: str
    """A .jsonl, .json or .parquet file, or the name of a hub dataset."""
    adapter: str | Adapter
    """`package.module:function` that makes a Problem of a row, or an Adapter with its settings."""
    subset: str | None = None
    """Which of a hub dataset's subsets, where it has several; a file has none."""
    split: str = "train"
    """Which split of a hub dataset; a file is one split."""
    revision: str | None = None
    """Which commit of a hub dataset; a file has none."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """What a file's bytes must hash to; `opd data check` prints it."""
    where: dict[str, Wanted] = field(default_factory=dict)
    """Column to the value, or to several, that a row must have there to be taken."""
    labels: tuple[str, ...] = ()
    """Columns that problems keep, for views that are of some problems alone."""
    repeated: Literal["refuse", "take_agreed"] = "refuse"
    """What becomes of problems with one id: none is taken, or the first of those whose answers all
    agree, letter by letter; where they do not agree none is."""
    limit: Annotated[int, Field(gt=0)] | None = None
    """Problems at most, from the first row on."""

    def problems(self) -> tuple[Problem, ...]:
        """All problems, in the order of their rows. Raises DataError with file, row and column."""
        left_out: Counter[str] = Counter()
        problems = dict(self.limited(self.numbered_problems(left_out)))
        if self.repeated == "refuse":
            refuse_repeated_ids(problems, self.dataset)
        else:
            taken = agreed(problems)
            left_out["another row asks the same"] = len(problems) - len(taken)
            problems = dict(islice(taken.items(), self.limit))
        for reason, count in left_out.items():
            if count:
                logger.warning("%s: %d rows are left out: %s", self.dataset, count, reason)
        if not problems:
            cause = "every row is left out" if left_out else "there are no rows"
            raise DataError(f"{self.dataset}: {cause}; give a dataset that has some")
        return tuple(problems.values())

    def limited(self, problems: Iterable[tuple[int, Problem]]) -> Iterable[tuple[int, Problem]]:
        """The problems up to the limit, where no later row can change what is taken."""
        return islice(problems, self.limit) if self.repeated == "refuse" else problems

    def numbered_problems(
        self, left_out: Counter[str], refuse: Refusal = raised
    ) -> Iterator[tuple[int, Problem]]:
        """Row number and problem of every row that is taken; `left_out` counts by reason those that
        the adapter leaves out, `refuse` is told of those that cannot be read."""
        adapt = adapter_named(self.adapter)
        for number, row in self.chosen_rows(refuse):
            try:
                yield number, adapted(adapt, row, f"{self.dataset}, row {number}", self.labels)
            except LeftOut as reason:
                left_out[str(reason)] += 1
            except DataError as fault:
                refuse(number, fault)

    def chosen_rows(self, refuse: Refusal = raised) -> Iterator[Numbered]:
        """The rows that hold every value of `where`."""
        rows = self.rows(refuse)
        return iter(matching(list(rows), self.where, self.dataset)) if self.where else rows

    def rows(self, refuse: Refusal = raised) -> Iterator[Numbered]:
        """The rows of the file or hub dataset."""
        path = self.file
        if path is None:
            return self.hub_rows()
        self.check_hash(path)
        return read_rows(path, self.dataset, refuse)

    @property
    def file(self) -> Path | None:
        """The file that holds the rows, None for a hub dataset. Raises DataError when a file is
        named and there is none."""
        path = Path(locate(self.dataset))
        if path.suffix not in FILE_TYPES and not path.exists():
            return None
        if path.suffix not in FILE_TYPES or path.is_dir():
            known = ", ".join(FILE_TYPES)
            raise DataError(f"{self.dataset}: is no file of rows; give one that ends in {known}")
        if not path.exists():
            raise DataError(f"{self.dataset}: there is no such file; correct the path")
        return path

    def check_hash(self, path: Path) -> None:
        """Raise DataError when the file is not the one whose hash was recorded."""
        if self.sha256 is None:
            return
        found = sha256_of(path)
        if found != self.sha256:
            raise DataError(
                f"{self.dataset}: its sha256 is {found}, and not {self.sha256[:12]}..., which is "
                "on record; fetch the file on record, or record this hash if the change is meant"
            )

    def hub_rows(self) -> Iterator[Numbered]:
        if self.sha256 is not None:
            raise DataError(
                f"{self.dataset}: a sha256 is of a file, and this is none; pin a hub dataset by "
                "its revision, or correct the path"
            )
        # Imported here because it takes seconds, and local files do without it.
        from datasets import load_dataset

        try:
            rows = load_dataset(self.dataset, self.subset, split=self.split, revision=self.revision)
        except (OSError, ValueError) as error:
            cause = first_line(error)
            raise DataError(
                f"{self.dataset}: is no file here, and the hub does not give it ({cause}); "
                "check the name, subset, split, revision and connection"
            ) from None
        return enumerate(cast("Iterable[Row]", rows), start=1)


def adapter_named(adapter: str | Adapter) -> Callable[[Row], Problem]:
    """The function or part that `adapter` names, or the part that it is."""
    if isinstance(adapter, Adapter):
        return adapter
    found = callable_named(adapter, "adapter")
    if isinstance(found, type) and issubclass(found, Adapter):
        return build(Adapter, {"name": adapter}, "adapter")
    return cast("Callable[[Row], Problem]", found)


def read_rows(path: Path, name: str, refuse: Refusal) -> Iterator[Numbered]:
    """The rows of a local file; `name` stands for it in errors."""
    if path.suffix == ".jsonl":
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield from one_row(line, parsed_json, (name, number), refuse)
        return
    rows = parsed_json(path.read_bytes(), name) if path.suffix == ".json" else read_parquet(path)
    if not isinstance(rows, list):
        raise DataError(f"{name}: holds no list of rows; make it a JSON list of objects")
    for number, row in enumerate(cast("list[object]", rows), start=1):
        yield from one_row(row, lambda value, _: value, (name, number), refuse)


def one_row(
    value: Any, parse: Callable[[Any, str], object], at: tuple[str, int], refuse: Refusal
) -> Iterator[Numbered]:
    """The row that stands there, if it is one."""
    name, number = at
    place = f"{name}, row {number}"
    try:
        row = as_row(parse(value, place), place)
    except DataError as fault:
        refuse(number, fault)
        return
    yield number, row


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


def matching(rows: Sequence[Numbered], where: Mapping[str, Wanted], name: str) -> list[Numbered]:
    """The rows that hold a value of every column of `where`, compared as text."""
    matches = list(rows)
    for column, wanted in where.items() if rows else ():
        values = texts(wanted)
        for number, row in matches:
            if column not in row:
                place = f"{name}, row {number}"
                raise DataError(f"{place}: column {column!r} is missing; {nearest(column, row)}")
        present = {str(row[column]) for _, row in matches}
        for value in values:
            if value not in present:
                near = nearest(value, present)
                raise DataError(f"{name}: no row has {value!r} in column {column!r}; {near}")
        matches = [(number, row) for number, row in matches if str(row[column]) in values]
    return matches


def texts(wanted: Wanted) -> tuple[str, ...]:
    """Any of these will do."""
    return tuple(map(str, wanted if isinstance(wanted, tuple) else (wanted,)))


def adapted(
    adapt: Callable[[Row], Problem], row: Row, place: str, labels: Sequence[str] = ()
) -> Problem:
    """The problem that the adapter makes of a row, with the columns that it keeps as `labels`."""
    try:
        problem = adapt(row)
        check_prompt(problem)
        return replace(problem, labels={column: str(row[column]) for column in labels})
    except KeyError as error:
        columns = ", ".join(row)
        raise DataError(f"{place}: column {error} is missing; the row has {columns}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{place}: {error}; correct the row or its adapter") from None


def check_prompt(problem: Problem) -> None:
    """Raise ValueError or TypeError for what no student could or should be asked."""
    if not isinstance(problem, Problem):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"the adapter returns {type(problem).__name__}, not Problem")
    messages = problem.prompt.messages
    if not messages or messages[-1].role != "user":
        raise ValueError("the prompt does not end with a user's message")
    if not messages[-1].content.strip():
        raise ValueError("the question is empty")
    for message in messages:
        message.content.encode()  # a lone surrogate, which no tokenizer takes, fails here
    for name in ("solution", "demonstration"):
        text: str = (getattr(problem.privileged, name) or "").strip()
        if len(text) >= VERBATIM_LENGTH and any(text in message.content for message in messages):
            raise ValueError(f"the prompt holds the whole {name}")


def refuse_repeated_ids(problems: Mapping[int, Problem], name: str) -> None:
    """Raise DataError where two rows give one id: rewards find a problem by it."""
    first_row: dict[str, int] = {}
    for number, problem in problems.items():
        first = first_row.setdefault(problem.prompt.id, number)
        if first != number:
            raise DataError(
                f"{name}, row {number}: has the id {problem.prompt.id!r} of row {first}; "
                "remove one of the two, or set repeated to take_agreed"
            )


def agreed(problems: dict[int, Problem]) -> dict[int, Problem]:
    """The first problem of every id whose problems all have one answer."""
    answers: dict[str, set[str | None]] = {}
    for problem in problems.values():
        answers.setdefault(problem.prompt.id, set()).add(problem.privileged.answer)
    first = {problem.prompt.id: number for number, problem in reversed(problems.items())}
    return {
        number: problem
        for number, problem in problems.items()
        if first[problem.prompt.id] == number and len(answers[problem.prompt.id]) == 1
    }


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
