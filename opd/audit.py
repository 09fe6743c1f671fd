"""What may be wrong with a dataset: rows, lengths, answers, repeats, and what it shares with
evaluation sets. Row numbers are reported; of texts no more than a fault's own sentence quotes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from opd.config import build, locate
from opd.errors import DataError
from opd.overlap import repeated, same_question, shared_words, without_template
from opd.privileged import Problem
from opd.problems import Dataset
from opd.reward import Reward
from opd.rollout.chat import Chat
from opd.rows import sha256_of
from opd.tree import mapping_at, merged, parse_override, read_yaml

SHOWN_ROWS = 5
TELLING_LENGTH = 6
"""Characters from which on an answer is too long to stand in a prompt by chance."""
ADAPTER_AND_FILE = re.compile(r"(?P<adapter>[\w.]+:\w+)=(?P<file>.+)")
PRIVILEGED_TEXTS = ("solution", "demonstration", "answer")

Others = Sequence[tuple[str, Mapping[int, Problem]]]
"""Name and problems, by row number, of each dataset to compare with."""


@dataclass(frozen=True)
class Finding:
    """Rows of which something is to be said."""

    what: str
    rows: Sequence[int]
    remark: str = ""
    stops_a_run: bool = False
    """Whether a run on this dataset ends before it begins."""


@dataclass(frozen=True)
class Lengths:
    """How long one kind of text is, in characters or tokens."""

    what: str
    lengths: Sequence[int]
    unit: str

    @property
    def high(self) -> int:
        """The 95th percentile: the smallest length that 95 % do not exceed."""
        return sorted(self.lengths)[ceil(0.95 * len(self.lengths)) - 1]


@dataclass(repr=False)
class Reading:
    """What became of a dataset's rows."""

    problems: dict[int, Problem] = field(default_factory=dict)
    """By row number."""
    faults: dict[int, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        return len(self.problems) + len(self.faults) + self.left_out.total()

    @property
    def questions(self) -> dict[int, str]:
        return {row: problem.prompt.question for row, problem in self.problems.items()}


def check_data(
    console: Console,
    name: str,
    *,
    adapter: str | None = None,
    overrides: Sequence[str] = (),
    reward: str | None = None,
    model: str | None = None,
    against: Sequence[str] = (),
    words: int = 13,
) -> bool:
    """Print what is found of the dataset `name`; whether a run on it could begin.

    `adapter` and `reward` are YAML as in a recipe, `overrides` are `key=value` of other keys of a
    Dataset, `against` are files to compare with, `adapter=file` where one needs another adapter.
    Without an adapter nothing but columns is told. Raises RecipeError for what makes no sense,
    DataError where nothing can be read.
    """
    keys: dict[str, object] = {"dataset": name}
    if adapter is not None:
        keys["adapter"] = read_yaml(adapter, "--adapter")
    for override in overrides:
        keys = mapping_at(merged(keys, parse_override(override)), "")
    if "adapter" not in keys:
        return list_columns(build(Dataset, {**keys, "adapter": ""}), console)
    return audit(
        build(Dataset, keys),
        console,
        against=[other_dataset(other, keys["adapter"]) for other in against],
        reward=build(Reward, read_yaml(reward, "--reward"), "--reward") if reward else None,
        chat=Chat.open(locate(model)) if model else None,
        words=words,
    )


def other_dataset(text: str, adapter: object) -> Dataset:
    """The dataset that `text` names, read by the adapter that it names too or by `adapter`."""
    named = ADAPTER_AND_FILE.fullmatch(text)
    tree = {"dataset": text, "adapter": adapter}
    if named:
        tree = {"dataset": named["file"], "adapter": named["adapter"]}
    return build(Dataset, tree, "--against")


def audit(
    dataset: Dataset,
    console: Console,
    *,
    against: Sequence[Dataset] = (),
    reward: Reward | None = None,
    chat: Chat | None = None,
    words: int = 13,
) -> bool:
    """Print what is found; whether a run on the dataset could begin. `words` in a row make an
    overlap with the datasets `against` (13 as in arXiv 2005.14165). Raises DataError when the
    dataset, or a row of one to compare with, cannot be read at all."""
    say_which_file(dataset, console)
    reading = read(dataset)
    others = [
        (Path(other.dataset).name, dict(other.numbered_problems(Counter()))) for other in against
    ]
    findings = [
        *unread(reading, dataset.dataset),
        *repeats(reading, dataset),
        *(refused_by(reward, reading) if reward else ()),
        *(unencodable(chat, reading) if chat else ()),
        told_answers(reading),
        *overlaps(reading, others, words),
    ]
    console.print(f"{reading.rows:,} rows, {len(reading.problems):,} problems")
    console.print(lengths_table(list(lengths_of(reading, chat))))
    console.print(findings_table(findings))
    stops = any(finding.stops_a_run and finding.rows for finding in findings)
    return bool(reading.problems) and not stops


def list_columns(dataset: Dataset, console: Console) -> bool:
    """Print what a file holds, for which no adapter is named; whether all rows can be read."""
    say_which_file(dataset, console)
    reading, kinds, rows = Reading(), dict[str, Counter[str]](), 0
    for _, row in dataset.rows(lambda number, fault: keep(reading, number, fault)):
        rows += 1
        for column, value in row.items():
            kinds.setdefault(column, Counter())[kind_of(value)] += 1
    console.print(f"{rows:,} rows; name an adapter with --adapter to read them as problems")
    table = Table("column", "what it holds")
    for column, times in kinds.items():
        said = ", ".join(f"{count:,} {kind}" for kind, count in times.most_common())
        table.add_row(Text(column), said)
    console.print(table)
    console.print(findings_table(list(unread(reading, dataset.dataset))))
    return rows > 0 and not reading.faults


def say_which_file(dataset: Dataset, console: Console) -> None:
    path = dataset.file
    console.print(Text(dataset.dataset))
    if path is not None:
        console.print(f"sha256: {sha256_of(path)}", soft_wrap=True)


def kind_of(value: object) -> str:
    if value is None or value in ("", [], {}):
        return "empty"
    return {str: "text", list: "list", dict: "object"}.get(type(value), type(value).__name__)


def read(dataset: Dataset) -> Reading:
    reading = Reading()
    problems = dataset.numbered_problems(
        reading.left_out, lambda number, fault: keep(reading, number, fault)
    )
    reading.problems.update(problems)
    return reading


def keep(reading: Reading, number: int, fault: DataError) -> None:
    reading.faults[number] = str(fault)


def unread(reading: Reading, name: str) -> Iterator[Finding]:
    """Rows that are no problems, and those that are not meant to be."""
    first = next(iter(reading.faults.values()), "").removeprefix(f"{name}, ")
    yield Finding("rows that cannot be read", list(reading.faults), first, True)
    for reason, count in reading.left_out.items():
        yield Finding(f"rows left out: {reason}", [], f"{count:,}")


def repeats(reading: Reading, dataset: Dataset) -> Iterator[Finding]:
    """Problems with one id, and questions that are asked again."""
    ids: dict[str, int] = {}
    for row, problem in reading.problems.items():
        ids.setdefault(problem.prompt.id, row)
    same_id = [row for row, p in reading.problems.items() if ids[p.prompt.id] != row]
    refused = dataset.repeated == "refuse"
    remark = "a run refuses them; remove them or set repeated=take_agreed" if refused else ""
    yield Finding("rows that repeat an id", same_id, remark if same_id else "", refused)
    (questions,) = without_template(reading.questions)
    again = repeated(questions)
    answers = {row: problem.privileged.answer for row, problem in reading.problems.items()}
    other = [row for row, earlier in again.items() if answers[row] != answers[earlier]]
    yield Finding("questions that repeat an earlier one", list(again))
    yield Finding("of these, with another answer", other)


def refused_by(reward: Reward, reading: Reading) -> Iterator[Finding]:
    """Problems that the reward can judge no response to."""
    refused: dict[int, str] = {}
    for row, problem in reading.problems.items():
        try:
            reward.check(problem)
        except ValueError as error:
            refused[row] = str(error)
    remark = next(iter(refused.values()), "")
    yield Finding(f"answers that {type(reward).__name__} cannot use", list(refused), remark, True)


def unencodable(chat: Chat, reading: Reading) -> Iterator[Finding]:
    """Prompts that a run on this model would refuse."""
    refused: dict[int, str] = {}
    for row, problem in reading.problems.items():
        try:
            chat.prompt_ids(problem.prompt.messages)
        except DataError as error:
            refused[row] = str(error)
    remark = next(iter(refused.values()), "")
    yield Finding(f"prompts that {chat.name} cannot read", list(refused), remark, True)


def told_answers(reading: Reading) -> Finding:
    """Prompts that tell their answer: after such words as "the answer is", in a box, or anywhere
    when it is long enough not to stand there by chance."""
    rows = [row for row, problem in reading.problems.items() if tells_answer(problem)]
    return Finding("prompts in which the answer stands", rows)


def tells_answer(problem: Problem) -> bool:
    answer = (problem.privileged.answer or "").strip()
    if not answer:
        return False
    whole = rf"(?<!\w){re.escape(answer)}(?!\w|[.,]\d)"
    told = rf"(?i:\b(?:answer|result)\s*(?:is|=|:)\W{{0,9}}?|\\boxed\s*\{{\s*){whole}"
    pattern = whole if len(answer) >= TELLING_LENGTH else told
    return any(re.search(pattern, message.content) for message in problem.prompt.messages)


def overlaps(reading: Reading, others: Others, words: int) -> Iterator[Finding]:
    """Questions that stand in other datasets too, whole or in part."""
    asked = [{row: p.prompt.question for row, p in problems.items()} for _, problems in others]
    ours, *theirs = without_template(reading.questions, *asked)
    for (name, _), questions in zip(others, theirs, strict=True):
        same = same_question(ours, questions)
        yield Finding(f"questions that {name} asks too", list(same), pairs(same))
        shared = shared_words(ours, questions, words)
        yield Finding(f"{words} words in a row as in {name}", list(shared), pairs(shared))


def pairs(found: Mapping[int, int]) -> str:
    """Of which rows there."""
    listed = ", ".join(str(row) for row in list(found.values())[:SHOWN_ROWS])
    return f"there rows {listed}; {len(set(found.values())):,} different" if found else ""


def lengths_of(reading: Reading, chat: Chat | None) -> Iterator[Lengths]:
    unit = "characters" if chat is None else "tokens"
    problems = reading.problems.values()
    prompts = [sum(length(m.content, chat) for m in p.prompt.messages) for p in problems]
    if prompts:
        yield Lengths("prompt", prompts, unit)
    for name in PRIVILEGED_TEXTS:
        texts: list[str] = [text for p in problems if (text := getattr(p.privileged, name))]
        if texts:
            yield Lengths(name, [length(text, chat) for text in texts], unit)


def length(text: str, chat: Chat | None) -> int:
    return len(text) if chat is None else len(chat.tokenizer.encode(text, add_special_tokens=False))


def lengths_table(lengths: Sequence[Lengths]) -> Table:
    table = Table("length of", "in", "rows", "median", "95 %", "longest")
    for kind in lengths:
        numbers = (len(kind.lengths), median(kind.lengths), kind.high, max(kind.lengths))
        table.add_row(kind.what, kind.unit, *(f"{number:,.0f}" for number in numbers))
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    table = Table("found", "count", "first rows", "remark")
    for finding in findings:
        listed = ", ".join(str(row) for row in finding.rows[:SHOWN_ROWS])
        more = ", ..." if len(finding.rows) > SHOWN_ROWS else ""
        count = f"{len(finding.rows):,}"
        table.add_row(Text(finding.what), count, f"{listed}{more}", Text(finding.remark))
    return table
