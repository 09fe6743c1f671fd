"""Another model's responses: the best of several, and ends to a student's beginnings."""

from __future__ import annotations

import math
import string
from collections.abc import Iterator
from math import log
from pathlib import Path

import pytest

from opd.config import build
from opd.errors import DataError
from opd.recipe import Recipe
from opd.rollout.chat import Chat
from opd.rollout.engine import Sampling
from opd.rollout.hf import HF
from opd.rollout.judged import read_judged
from opd.rollout.sampler import Sampler
from opd.rollout.source import Source, Stored
from opd.rollout.taught import HandOff, MostTaught, balance, split
from opd.stored import sample, score
from tests.runs import tree

SAMPLING = Sampling(max_response_tokens=6)


@pytest.fixture(scope="module")
def sampler(tiny_model_dir: Path) -> Iterator[Sampler]:
    engine = HF()
    engine.open(str(tiny_model_dir), dtype="float32", max_length=512, seed=0)
    yield Sampler(engine, Chat.open(str(tiny_model_dir)), 512, seed=0)
    engine.close()


@pytest.fixture(scope="module")
def drawn(
    tiny_model_dir: Path, tied_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Recipe]:
    """A folder with one model's responses and what another thinks of them."""
    folder = tmp_path_factory.mktemp("drawn")
    source = {"name": "OnPolicy", "rollouts_per_problem": 3}
    writer = build(Recipe, tree(tied_model_dir, folder / "unused", source=source))
    views = {"weights": "Frozen", "views": {"solution": "Plain"}}
    student = build(Recipe, tree(tiny_model_dir, folder / "unused", teacher=views))
    sample(writer, 3, folder / "rows.jsonl")
    score(student, folder / "rows.jsonl", folder / "scores")
    return folder, student


def test_a_response_comes_apart_after_what_ends_a_sentence() -> None:
    assert split(["a", ".", "b", "c?", "d"], ".?") == [range(0, 2), range(2, 4), range(4, 5)]
    assert split(["a", "."], ".") == [range(0, 2)]
    assert split(["a"], ".") == [range(0, 1)]


def test_the_balance_weighs_sentences_by_their_tokens() -> None:
    gaps, tokens = [log(2) + 0.01, log(2) - 0.01, -log(2) - 0.01], [5, 3, 2]
    assert balance(gaps, tokens, log(2)) == pytest.approx((5 - 2) / 10)


def test_the_response_with_most_to_teach_is_taken(
    sampler: Sampler, drawn: tuple[Path, Recipe]
) -> None:
    folder, recipe = drawn
    settings = {"path": str(folder / "rows.jsonl")}
    source = build(
        MostTaught,
        {
            "of": settings,
            "student": str(folder / "scores"),
            "view": "solution",
            "ends": string.printable,
            "threshold": 4.0,
        },
    )
    problems = source.answered(recipe.problems.problems())
    chosen = source.collect(problems, sampler, SAMPLING, 0)
    rows = read_judged(folder / "rows.jsonl")
    for problem, (rollout,) in zip(problems, chosen, strict=True):
        scores = [source.score(row, problem, sampler) for row in rows[problem.prompt.id]]
        assert len(set(scores)) > 1, "else anything is the best"
        best = rows[problem.prompt.id][scores.index(max(scores))].rollout
        assert rollout.token_ids == best.token_ids
    with pytest.raises(DataError, match="holds no scores"):
        build(MostTaught, {"of": settings, "student": str(folder)}).collect(
            problems, sampler, SAMPLING, 0
        )


def test_an_end_is_handed_over(sampler: Sampler, drawn: tuple[Path, Recipe]) -> None:
    folder, recipe = drawn
    stored = Stored(path=str(folder / "rows.jsonl"))
    source = build(Source, {"name": "HandOff", "of": {"path": stored.path, "name": "Stored"}})
    assert isinstance(source, HandOff)
    problems = source.answered(recipe.problems.problems())
    kept = []
    for theirs, ours in zip(
        stored.collect(problems, sampler, SAMPLING, 0),
        source.collect(problems, sampler, SAMPLING, 0),
        strict=True,
    ):
        for before, after in zip(theirs, ours, strict=True):
            cut, length = sum(map(math.isnan, after.logprobs)), len(before.token_ids)
            assert math.ceil(length / 2) <= cut < length
            assert after.token_ids[:cut] == before.token_ids[:cut]
            assert after.prompt_ids == before.prompt_ids
            assert 0 < len(after.token_ids) - cut <= SAMPLING.max_response_tokens
            assert after.text == sampler.chat.text(after.token_ids)
            # The end is what the model at hand says next, and its log-probs are its own.
            assert after.policy_step == 0 and len(after.logprobs) == len(after.token_ids)
            kept.append(cut)
    assert len(set(kept)) > 2
