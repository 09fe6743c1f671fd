"""A text cut into segments, so that a part of it can be shown."""

from __future__ import annotations

import re

BOUNDARIES = (
    re.compile(r"(?<=\n)\s*\n"),
    re.compile(r"\n(?=\s*(?:[-*•]|\d+[.)])\s)"),
    re.compile(r"(?<=[.!?;])\s+(?=\S)"),
    re.compile(r"(?<=\d)(?=[^\d\s.,])"),
)
"""Between paragraphs, steps of a list, sentences, and after numbers; the first kind that a text has
is taken."""


def segments(text: str) -> tuple[str, ...]:
    """Pieces that together are `text`: paragraphs, else steps of a list, else sentences, else what
    ends with a number, else characters."""
    for boundary in BOUNDARIES:
        ends = [found.end() for found in boundary.finditer(text) if 0 < found.end() < len(text)]
        if ends:
            starts = [0, *ends]
            return tuple(text[a:b] for a, b in zip(starts, [*ends, len(text)], strict=True))
    return tuple(text)


def opening(text: str, count: int) -> str:
    """The first `count` segments of `text`."""
    return "".join(segments(text)[:count])
