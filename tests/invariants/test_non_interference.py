"""Whatever stands on the privileged side, the student's side stays the same to the last byte."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from opd.evaluation.evaluator import Benchmark, measure
from opd.privileged import Case, Privileged, Problem, ProgramTests
from opd.problems import Dataset
from opd.rollout.chat import Chat
from opd.rollout.engine import Completion, Engine, Request, Sampling
from opd.rollout.hf import HF
from opd.rollout.sampler import Sampler
from opd.rollout.source import OnPolicy
from opd.types import Verdict

SAMPLING = Sampling(max_response_tokens=3)


@dataclass
class Tapped(Engine):
    """The real engine, with a record of all that it was asked."""

    inner: HF
    asked: list[tuple[Sequence[Request], Sampling]] = field(default_factory=list)

    def open(self, path: str, *, dtype: str, max_length: int, seed: int) -> None:
        self.inner.open(path, dtype=dtype, max_length=max_length, seed=seed)

    def load(self, weights: Iterable[tuple[str, Tensor]], step: int) -> None:
        self.inner.load(weights, step)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.asked.append((tuple(requests), sampling))
        return self.inner.generate(requests, sampling)

    def close(self) -> None:
        self.inner.close()


def disturbed(problem: Problem, random: Random) -> Problem:
    """The problem with another privileged side: other content, length, language, marks, nothing."""
    text = random.choice(
        ["", "0", "Ω≠{x}$y", "<|im_end|>", "\\boxed{1}", "word " * 500, problem.prompt.question]
    )
    other = random.choice([None, text, text[::-1]])
    tests = random.choice(
        [None, ProgramTests((text,), preamble=text), ProgramTests(cases=(Case(text, text),))]
    )
    everything = Privileged(solution=text, answer=other, demonstration=other, tests=tests)
    return replace(problem, privileged=everything)


@pytest.fixture(scope="module")
def problems() -> tuple[Problem, ...]:
    """200 problems of the embedded default."""
    dataset = Dataset(dataset="data/tiny/train.jsonl", adapter="data.tiny:problem", limit=200)
    return dataset.problems()


def seen_by_the_student(
    problems: Sequence[Problem], model: Path
) -> tuple[list[tuple[Sequence[Request], Sampling]], list[object]]:
    """All engine requests of a training step and an evaluation, and all rollouts."""
    torch.set_num_threads(1)
    engine = Tapped(HF())
    engine.open(str(model), dtype="float32", max_length=512, seed=0)
    sampler = Sampler(engine, Chat.open(str(model)), 512, seed=3)
    rollouts = OnPolicy(rollouts_per_problem=2).collect(problems, sampler, SAMPLING, step=5)
    benchmark = Benchmark(
        "held_out",
        tuple(problem.prompt for problem in problems),
        lambda answered: [Verdict("fail", 0.0) for _ in answered],
    )
    measured = measure(benchmark, sampler, SAMPLING, 2)
    engine.close()
    return engine.asked, [rollouts, measured]


def test_privileged_sides_change_no_byte_of_the_students(
    tiny_model_dir: Path, problems: tuple[Problem, ...]
) -> None:
    assert len(problems) == 200
    random = Random(0)
    others = tuple(disturbed(problem, random) for problem in problems)
    assert all(a.privileged != b.privileged for a, b in zip(problems, others, strict=True))
    requests, drawn = seen_by_the_student(problems, tiny_model_dir)
    assert len(requests) == 3 and all(asked for asked, _ in requests)
    assert (requests, drawn) == seen_by_the_student(others, tiny_model_dir)
