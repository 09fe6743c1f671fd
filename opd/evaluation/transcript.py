"""Every judged response of an evaluation, one JSON line each, on disk before it counts."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from opd.errors import DataError
from opd.rows import finite, writing

Kind = Literal["sampled", "greedy"]
Key = tuple[str, Kind, str, int]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One response, or the reason why there is none."""

    benchmark: str
    kind: Kind
    problem: str
    sample: int
    """Its index among the responses of its kind to the problem."""
    prompt_sha256: str
    seed: int
    sampling: dict[str, float]
    tokens: int
    finish: str
    """stop, length or abort; does_not_fit or unreadable where the model was not asked."""
    status: str | None
    """Of the verdict; None where the model was not asked."""
    reward: float
    answer: str | None
    """The verdict's: what a majority is taken over."""
    text: str
    """The response; where the model was not asked, why."""

    @property
    def key(self) -> Key:
        return self.benchmark, self.kind, self.problem, self.sample

    @property
    def was_asked(self) -> bool:
        return self.status is not None

    @property
    def is_judged(self) -> bool:
        """A grader's fault is no miss; a prompt that does not fit is one."""
        return self.status != "no_verdict"

    @property
    def passed(self) -> bool:
        return self.status == "pass"


class Transcript:
    """The file of an evaluation's samples; it is appended to and never rewritten."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier process left; a last line that a kill tore is cut off.

        Raises DataError, with the line, for a row that is malformed or stands twice.
        """
        self.path = path
        self.samples: dict[Key, Sample] = {}
        """Without their texts, which no number reads and which may fill the memory."""
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            place = f"{path}, line {number}"
            sample = parsed(line, place)
            if sample.key in self.samples:
                raise DataError(f"{place}: this sample stands there twice; delete the line")
            self.samples[sample.key] = replace(sample, text="")
        if len(whole) < len(content):
            logger.warning("%s: the last line was cut off and is drawn again", path)
            with writing(path):
                os.truncate(path, len(whole))

    def append(self, samples: Sequence[Sample]) -> None:
        """Keep those that are not there yet; on disk when this returns."""
        new = [sample for sample in samples if sample.key not in self.samples]
        rows = (json.dumps(finite(asdict(sample)), ensure_ascii=False) for sample in new)
        text = "".join(f"{row}\n" for row in rows)
        with writing(self.path), self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        self.samples.update((sample.key, replace(sample, text="")) for sample in new)


def parsed(line: bytes, place: str) -> Sample:
    try:
        return Sample(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise DataError(f"{place}: is no sample ({error}); delete the line") from error
