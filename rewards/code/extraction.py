"""The program in a response."""

from __future__ import annotations

import re

OPENING = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*")
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
    """Language in lower case and content of every closed block."""
    blocks: list[tuple[str, str]] = []
    fence, language, lines = "", "", list[str]()
    for line in text.split("\n"):
        if not fence:
            opening = OPENING.fullmatch(line.rstrip())
            if opening:
                fence, language, lines = opening[1], opening[2].lower(), []
        elif closes(line, fence):
            blocks.append((language, "\n".join([*lines, ""])))
            fence = ""
        else:
            lines.append(line)
    return blocks


def closes(line: str, fence: str) -> bool:
    """Whether a line closes a block: at least as long a fence of the same sign, nothing behind."""
    bare = line.strip()
    return len(bare) >= len(fence) and not bare.strip(fence[0]) and len(line) - len(line.lstrip()) < 4
