"""Any rows, by a map that says of every column what it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator

from data.cells import answer_of, identity, messages_of, text_of
from opd.config import part
from opd.privileged import Privileged, Problem
from opd.problems import Adapter, Row
from opd.types import Message, Prompt

Meaning = Literal["id", "prompt", "messages", "solution", "answer", "demonstration", "unread"]
"""What a column is. `prompt`: a text, or a conversation that ends with the user's turn. `messages`:
a conversation that ends with the assistant's turn, which is the demonstration and no part of the
prompt. `solution`, `demonstration`: a text, or a conversation of one turn, the assistant's (TRL's
`completion`). `unread`: nothing that is needed."""


@part
class Columns(Adapter):
    """Plain and conversational rows, as TRL reads them. Nothing is guessed: a column that the map
    does not name is refused, so that a solution can land in a prompt by no name that it may have.
    """

    columns: dict[str, Meaning]
    """Every column of the rows, with what it is; all but `unread` are said of one column at
    most."""
    instruction: str = ""
    """Written under the question, after an empty line."""
    dataset: Annotated[str, Field(min_length=1)] = "row"
    """What ids begin with, where no column holds them."""

    @field_validator("columns")
    @classmethod
    def says_each_thing_once(cls, columns: dict[str, Meaning]) -> dict[str, Meaning]:
        times = Counter(columns.values())
        for meaning, count in times.items():
            if count > 1 and meaning != "unread":
                names = " and ".join(repr(name) for name in columns if columns[name] == meaning)
                raise ValueError(f"{names} are both the {meaning}; name one")
        if times["prompt"] + times["messages"] != 1:
            raise ValueError("one column is the prompt, or else the messages; say which")
        if times["messages"] + times["demonstration"] > 1:
            raise ValueError("messages end with a demonstration, so that no column is another")
        return columns

    def __call__(self, row: Row) -> Problem:
        for column in row:
            if column not in self.columns:
                raise ValueError(f"column {column!r} is not in columns: say what it is, or unread")
        named: Mapping[Meaning, str] = {meaning: name for name, meaning in self.columns.items()}
        for column in self.columns:
            row[column]  # a column that is not there is another dataset's
        messages, demonstration = conversation(row, named)
        if self.instruction:
            asked = f"{messages[-1].content}\n\n{self.instruction}"
            messages = (*messages[:-1], Message("user", asked))
        name = answer_of(row, named["id"]) if "id" in named else identity(self.dataset, messages)
        return Problem(
            Prompt(name, messages),
            Privileged(
                solution=written(row, named.get("solution")),
                answer=answer_of(row, named["answer"]) if "answer" in named else None,
                demonstration=demonstration or written(row, named.get("demonstration")),
            ),
        )


def conversation(row: Row, named: Mapping[Meaning, str]) -> tuple[tuple[Message, ...], str | None]:
    """The turns that are asked, and the assistant's last where the row's messages end with it."""
    if "messages" in named:
        column = named["messages"]
        *asked, last = messages_of(row[column], column)
        if last.role != "assistant" or not asked or asked[-1].role != "user":
            raise ValueError(f"column {column!r} does not end with a question and its answer")
        return tuple(asked), last.content
    column = named["prompt"]
    if isinstance(row[column], str):
        return (Message("user", text_of(row, column)),), None
    asked = messages_of(row[column], column)
    if asked[-1].role != "user":
        raise ValueError(f"column {column!r} ends with an answer; it is messages, not a prompt")
    return asked, None


def written(row: Row, column: str | None) -> str | None:
    """A privileged text, where a column is one."""
    if column is None:
        return None
    value = row[column]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
        if isinstance(value, Mapping) and value.get("role") == "assistant":
            return text_of(value, "content")
    return text_of(row, column)
