"""What stands in one cell of a row, and nothing that had to be guessed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import cast, get_args

from opd.problems import Row
from opd.types import Message, Role

THINKING_ENDS = "</think>"


def text_of(row: Row, column: str) -> str:
    """The text of a column, without white space around it. Raises KeyError when the column is
    missing, ValueError when it holds no text."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"column {column!r} holds no text")
    return value.strip()


def answer_of(row: Row, column: str) -> str:
    """A short answer: a text or a whole number. Raises ValueError for anything else, a number with
    a decimal point too, because nothing says how it was rounded."""
    value = row[column]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise ValueError(f"column {column!r} holds neither a text nor a whole number")


def messages_of(
    value: object, column: str, keys: tuple[str, str] = ("role", "content")
) -> tuple[Message, ...]:
    """A conversation: at most one system turn, then user and assistant by turns. Raises ValueError
    for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise ValueError(f"column {column!r} holds no list of messages")
    messages = tuple(
        message_of(turn, f"column {column!r}, turn {i}", keys)
        for i, turn in enumerate(cast("Sequence[object]", value), start=1)
    )
    turns = messages[1:] if messages[0].role == "system" else messages
    for i, message in enumerate(turns):
        expected = ("user", "assistant")[i % 2]
        if message.role != expected:
            place = len(messages) - len(turns) + i + 1
            raise ValueError(
                f"column {column!r}, turn {place} is the {message.role}'s where the {expected}'s "
                "should be"
            )
    return messages


def message_of(turn: object, place: str, keys: tuple[str, str]) -> Message:
    role_key, content_key = keys
    if not isinstance(turn, Mapping) or role_key not in turn or content_key not in turn:
        raise ValueError(f"{place} has no {role_key!r} and {content_key!r}")
    role, content = turn[role_key], turn[content_key]
    if role not in get_args(Role):
        raise ValueError(f"{place} is of {role!r}, who is none of {', '.join(get_args(Role))}")
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"{place} holds no text")
    return Message(role, content.strip())


def after_thinking(text: str, column: str) -> str:
    """What stands after a model's thinking, the whole text where it shows none. Raises ValueError
    when nothing follows."""
    final = text.rpartition(THINKING_ENDS)[2].strip()
    if not final:
        raise ValueError(f"column {column!r} ends with its thinking")
    return final


def identity(dataset: str, question: str | Sequence[Message]) -> str:
    """An id that depends on the question alone, so that questions that repeat share it."""
    if not isinstance(question, str):
        turns = [(message.role, message.content) for message in question]
        question = json.dumps(turns, ensure_ascii=False)
    return f"{dataset}-{hashlib.sha256(question.encode()).hexdigest()[:12]}"
