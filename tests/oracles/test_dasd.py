"""Texts that suit a student: which sentences teach, and what colder samples are drawn from."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, exp, log, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from opd.config import build, dump, load_recipe
from opd.learner.batch import pack
from opd.objective.logits import Logits
from opd.objective.loss import Likelihood
from opd.privileged import Trajectory
from opd.recipe import Recipe
from opd.rollout.sampler import Sampler
from opd.rollout.source import Stored
from opd.rollout.taught import HandOff, balance, means, split
from opd.stored import sample, score
from opd.types import Message, Prompt, Rollout, Verdict
from tests.runs import run, tree

RECIPE = build(Recipe, load_recipe("dasd"))
TEACHER, STUDENT = (0.9, 0.8, 0.95), (0.3, 0.2, 0.5)


def test_a_sentence_that_teaches() -> None:
    (sentence,) = split(["so ", "it ", "is."], ".")
    (theirs,) = means([log(p) for p in TEACHER], [sentence])
    (mine,) = means([log(p) for p in STUDENT], [sentence])
    assert exp(theirs) == pytest.approx(0.8810868, abs=1e-6)
    assert exp(mine) == pytest.approx(0.3107233, abs=1e-6)
    assert theirs - mine == pytest.approx(1.0422535, abs=1e-6)
    assert balance([theirs - mine], [3], log(2)) == 1.0
    assert balance([mine - theirs], [3], log(2)) == -1.0


def test_a_beginning_is_handed_over_in_its_second_half() -> None:
    """Every place there, never the end, and the student's own tokens."""
    sampler = cast(Sampler, SimpleNamespace(seed=0))
    source = HandOff(of=Stored(path="unread"))
    for length in (2, 3, 4, 9):
        rollout = response(length)
        cuts = [source.cut(rollout, place, sampler).token_ids for place in range(200)]
        assert {len(each) for each in cuts} == set(range(ceil(length / 2), length))
        assert all(each == rollout.token_ids[: len(each)] for each in cuts)


def test_the_students_own_beginning_is_learned_too() -> None:
    """And the prompt is not: what is known to be another's counts like what was just drawn."""
    (term,) = RECIPE.terms.values()
    joined = replace(response(5), logprobs=(nan, nan, nan, -1.0, -1.0))
    learned = Trajectory(joined, Verdict("pass", 1.0), 0.0, 0.0, {})
    (batch,) = pack([learned], tokens_per_batch=99, packing=False, pad_id=0)
    assert batch.target_ids.tolist() == list(joined.token_ids)
    assert term.weight(batch, {}).tolist() == [1, 1, 1, 1, 1]


def response(length: int) -> Rollout:
    prompt = Prompt("p", (Message("user", "?"),))
    ids = tuple(range(10, 10 + length))
    return Rollout(prompt, (1, 2), ids, (-1.0,) * length, 0, "stop", "")


def test_one_response_a_problem_leaves_nothing_to_choose(
    tiny_model_dir: Path, tied_model_dir: Path, tmp_path: Path
) -> None:
    """The very updates of imitating the stored responses."""
    changes: dict[str, Any] = {
        "terms": dump(RECIPE.terms),
        "steps": 3,
        "benchmarks": {},
        "checkpoint": {"every": 0},
    }
    teacher = {"weights": "Frozen", "views": {"plain": "Plain"}}
    path = tmp_path / "rollouts.jsonl"
    drawn = {**changes, "source": "OnPolicy"}
    sample(build(Recipe, tree(tied_model_dir, tmp_path / "unused", **drawn)), 6, path)
    scored = tree(tiny_model_dir, tmp_path / "unused", teacher=teacher, **changes)
    score(build(Recipe, scored), path, tmp_path / "scores")
    stored = {"name": "Stored", "path": str(path)}
    chosen = {"name": "MostTaught", "of": stored, "student": str(tmp_path / "scores")}
    left = []
    for name, source in (("chosen", chosen), ("stored", stored)):
        run(tiny_model_dir, tmp_path / name, source=source, teacher={}, **changes)
        left.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert left[0] == left[1] != (tiny_model_dir / "model.safetensors").read_bytes()


def test_colder_samples_come_from_a_sharper_row() -> None:
    cold = Logits(torch.tensor([[0.7, 0.2, 0.1]]).log()).log_probs(0.6).exp()
    assert cold[0].tolist() == pytest.approx([0.859859, 0.106573, 0.033568], abs=1e-6)


def test_a_stage_is_plain_imitation() -> None:
    """Only the source parts it from likelihood of the same texts."""
    ours, plain = (build(Recipe, load_recipe(name)) for name in ("dasd", "seqkd"))
    assert ours.terms == plain.terms and isinstance(ours.terms["imitate"].loss, Likelihood)
    assert ours.optimizer == plain.optimizer
