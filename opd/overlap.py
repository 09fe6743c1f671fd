"""Questions that two datasets share, whole or by many words in a row."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping

WORD = re.compile(r"\w+")
NOT_COMPARED = re.compile(r"\s|\$")

PROMPTS_FOR_A_TEMPLATE = 3
"""Prompts from which on a paragraph that more than half of them have is their template's."""

Questions = Mapping[int, str]
"""Row number to the question that stands there."""


def without_template(*datasets: Questions) -> list[dict[int, str]]:
    """The questions without the paragraphs that more than half of any one dataset's prompts have:
    instructions, which would make everything alike."""
    template: set[str] = set()
    for questions in datasets:
        different = set(questions.values())
        times = Counter(p for question in different for p in set(paragraphs(question)))
        if len(different) >= PROMPTS_FOR_A_TEMPLATE:
            template |= {p for p, count in times.items() if 2 * count > len(different)}
    return [
        {
            row: "\n\n".join(p for p in paragraphs(question) if p not in template)
            for row, question in questions.items()
        }
        for questions in datasets
    ]


def paragraphs(text: str) -> list[str]:
    return [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]


def normalised(question: str) -> str:
    """What is left of a question when case, white space, dollar signs and last stops are."""
    plain = unicodedata.normalize("NFKC", question).casefold()
    return NOT_COMPARED.sub("", plain).rstrip(".?!:")


def repeated(questions: Questions) -> dict[int, int]:
    """Row to the first row that asks the same."""
    first: dict[str, int] = {}
    found = {row: first.setdefault(normalised(text), row) for row, text in questions.items()}
    return {row: earlier for row, earlier in found.items() if earlier != row}


def same_question(questions: Questions, others: Questions) -> dict[int, int]:
    """Row to the first row of the others that asks the same."""
    known: dict[str, int] = {}
    for row, text in others.items():
        known.setdefault(normalised(text), row)
    return {
        row: known[key]
        for row, key in ((row, normalised(text)) for row, text in questions.items())
        if key and key in known
    }


def shared_words(questions: Questions, others: Questions, count: int) -> dict[int, int]:
    """Row to the first row of the others with which it has `count` words in a row in common,
    whatever stands between them. Shorter questions share none."""
    known: dict[tuple[str, ...], int] = {}
    for row, text in others.items():
        for gram in grams(text, count):
            known.setdefault(gram, row)
    found = (
        (row, [known[g] for g in grams(text, count) if g in known])
        for row, text in questions.items()
    )
    return {row: min(rows) for row, rows in found if rows}


def grams(text: str, count: int) -> Iterator[tuple[str, ...]]:
    words: list[str] = WORD.findall(text.casefold())
    return (tuple(words[i : i + count]) for i in range(len(words) - count + 1))
