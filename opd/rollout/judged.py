"""Judged rollouts on disk: one JSON object a line, in a file that is there whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opd.errors import DataError
from opd.rows import finite, writing
from opd.types import Message, Prompt, Rollout, Verdict


@dataclass(frozen=True)
class Judged:
    """A rollout with its verdict, and where it came from."""

    rollout: Rollout
    verdict: Verdict
    drawn_by: str | None = None
    """Hash of the weights that drew it; None when it was written down."""
    chat: str | None = None
    """Hash of the tokenizer and chat template that its tokens belong to."""


def write_judged(to: Path, rows: Iterable[Judged]) -> int:
    """Write the new file `to`; how many rows. Raises DataError when it exists."""
    refuse_existing(to)
    staging = to.with_name(f".{to.name}")
    count = 0
    with writing(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("w", encoding="utf-8") as file:
            for count, row in enumerate(rows, start=1):  # noqa: B007
                file.write(json.dumps(finite(asdict(row)), ensure_ascii=False) + "\n")
        staging.rename(to)
    return count


def read_judged(path: Path) -> dict[str, list[Judged]]:
    """The rows of each problem by its id, in order of first appearance. Raises DataError with the
    row."""
    found: dict[str, list[Judged]] = {}
    try:
        # str.splitlines would also split at U+2028 and the like, which JSON texts may hold.
        with path.open(encoding="utf-8") as file:
            lines = file.readlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; write it with `opd sample --to`") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rollout, verdict = read_rollout(row.pop("rollout")), Verdict(**row.pop("verdict"))
            judged = Judged(rollout, verdict, **row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: row {number} is no stored rollout ({error!r}); write the file with "
                "`opd sample --to`"
            ) from error
        found.setdefault(rollout.prompt.id, []).append(judged)
    return found


def read_rollout(row: Mapping[str, Any]) -> Rollout:
    """A rollout as it was written."""
    prompt = row["prompt"]
    changes = {
        "prompt": Prompt(prompt["id"], tuple(Message(**turn) for turn in prompt["messages"])),
        "prompt_ids": tuple(row["prompt_ids"]),
        "token_ids": tuple(row["token_ids"]),
        "logprobs": tuple(math.nan if nats is None else nats for nats in row["logprobs"]),
    }
    return Rollout(**{**row, **changes})


def refuse_existing(to: Path) -> None:
    """Nothing is written over."""
    if to.exists():
        raise DataError(f"{to}: exists already; name a new file or delete it")
