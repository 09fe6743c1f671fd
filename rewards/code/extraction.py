"""The program in a response."""

from __future__ import annotations

import re

OPENING = re.compile(r"( *)(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*")
CLOSING = re.compile(r" *(`{3,}|~{3,})")
PYTHON = ("python", "python3", "py")


def program_in(response: str) -> str | None:
    """The last fenced code block after the reasoning that says it is Python; where none says so,
    the last that says nothing. None without any.

    Blocks of another language, such as a printed output, are not read, nor is one that is never
    closed, nor what stands in reasoning, up to "</think>" or after a "<think>" left open.
    """
    blocks = fenced_blocks(response.rpartition("</think>")[2].partition("<think>")[0])
    python = [text for language, text in blocks if language in PYTHON]
    untold = [text for language, text in blocks if not language]
    return next(reversed(python or untold), None)


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """Language in lower case and content of every closed block; one that is indented, as in a list,
    is moved back."""
    blocks: list[tuple[str, str]] = []
    opening: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        if opening is None:
            opening, lines = OPENING.fullmatch(line.rstrip()), []
        elif closes(line, opening[2]):
            blocks.append((opening[3].lower(), "".join(lines)))
            opening = None
        else:
            indent = len(opening[1])
            lines.append(f"{line[:indent].lstrip(' ')}{line[indent:]}\n")
    return blocks


def closes(line: str, fence: str) -> bool:
    """Whether a line closes a block: at least as long a fence of the same sign, nothing behind."""
    closing = CLOSING.fullmatch(line.rstrip())
    return closing is not None and closing[1].startswith(fence)
