"""arXiv 2503.07067: each text of a pair has its divergence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.config import build, load_recipe
from opd.loop import train
from opd.objective.divergence import SkewKL, SkewReverseKL
from opd.objective.loss import Distill
from opd.objective.term import Term
from opd.objective.weight import Origin
from opd.recipe import Recipe
from opd.rollout.judged import read_judged
from opd.stored import sample
from tests.batches import batch_of
from tests.rows import A_STUDENT, A_TEACHER, pulled
from tests.students import distance, draw_trajectories, recipe_terms, update_of

KINDS = ("written", "sampled")


def weighted(name: str, step: int) -> list[float]:
    """What each term makes of one row of its kind, at a step."""
    terms = recipe_terms(name)
    return [
        terms[kind].coefficient.at(step, 150)
        * pulled(terms[kind].loss, A_STUDENT, plain=A_TEACHER)[0]  # pyright: ignore
        for kind in KINDS
    ]


@pytest.mark.parametrize(
    ("name", "step", "beta"),
    [
        ("distillm2", 0, 1.0),
        ("distillm2", 149, 1.0),
        ("distillm2_gradual", 0, 1.0),
        ("distillm2_gradual", 30, 1.2),
        ("distillm2_gradual", 75, 1.5),
        ("distillm2_gradual", 149, 1.5),
    ],
)
def test_both_divergences(name: str, step: int, beta: float) -> None:
    """(2 - beta) SKL + beta SRKL, on one row of each kind."""
    found = weighted(name, step)
    assert found == pytest.approx([(2 - beta) * 0.0820464, beta * 0.0900026], abs=1e-6)
    totals = {1.0: 0.1720490, 1.2: 0.1736402, 1.5: 0.1760271}
    assert sum(found) == pytest.approx(totals[beta], abs=1e-6)


def test_the_students_side_of_the_mixture_is_held() -> None:
    loss = recipe_terms("distillm2")["sampled"].loss
    assert isinstance(loss, Distill)
    pull = pulled(loss, A_STUDENT, plain=A_TEACHER)[1]
    assert pull == pytest.approx((-0.198744, 0.027112, 0.171632), abs=1e-6)
    free = replace(loss, divergence=SkewReverseKL(skew=0.1))
    pull = pulled(free, A_STUDENT, plain=A_TEACHER)[1]
    assert pull == pytest.approx((-0.174708, 0.027024, 0.147684), abs=1e-6)


def test_written_and_sampled_tokens_come_apart() -> None:
    batch = batch_of([2, 1], sampled_logprob=torch.tensor([-1.0, -2.0, float("nan")]))
    assert Origin(when="sampled")(batch, {}).tolist() == [1, 1, 0]
    assert Origin(when="written")(batch, {}).tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_one_kind_is_left_to_one_term(tiny_model_dir: Path, kind: str) -> None:
    nan = float("nan")
    trajectories = [
        replace(
            each,
            rollout=replace(each.rollout, logprobs=(nan,) * len(each.rollout.token_ids)),
        )
        if kind == "written"
        else each
        for each in draw_trajectories("plain")
    ]
    terms = recipe_terms("distillm2")
    _, found = update_of(tiny_model_dir, terms, trajectories)
    alone = replace(terms[kind], weights=())
    _, want = update_of(tiny_model_dir, {kind: alone}, trajectories)
    assert distance(found, want) < 1e-6


def test_one_divergence_and_one_mean_for_both_is_the_first_version(tiny_model_dir: Path) -> None:
    """Half of the texts were written; the loss of arXiv 2402.03898 does not tell them apart."""
    nan = float("nan")
    trajectories = [
        replace(
            each,
            rollout=replace(each.rollout, logprobs=(nan,) * len(each.rollout.token_ids)),
        )
        if number % 2
        else each
        for number, each in enumerate(draw_trajectories("plain"))
    ]
    skew = Distill(target="plain", divergence=SkewKL(skew=0.1))
    terms = {
        name: replace(term, loss=skew, average="token", pool="tokens")
        for name, term in recipe_terms("distillm2").items()
    }
    _, found = update_of(tiny_model_dir, terms, trajectories)
    _, want = update_of(tiny_model_dir, {"distil": Term(loss=skew)}, trajectories)
    assert distance(found, want) < 1e-5
    unlike = recipe_terms("distillm2")
    assert distance(update_of(tiny_model_dir, unlike, trajectories)[1], want) > 1e-2


def test_every_step_holds_a_pair_of_every_problem(tmp_path: Path) -> None:
    sample(build(Recipe, load_recipe("quickstart")), 4, tmp_path / "better.jsonl")
    small = ["steps=1", "problems_per_step=4", "evaluation.every=0", "benchmarks.held_out=null"]
    here = [
        f"source.second.path={tmp_path / 'better.jsonl'}",
        "teacher.weights.path=data/tiny",
        "benchmarks.untouched=null",
        "guard.limits={}",
        "rollouts_logged=8",
        f"output={tmp_path / 'run'}",
    ]
    train(build(Recipe, load_recipe("distillm2", [*small, *here])))
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").open()]
    of_better = read_judged(tmp_path / "better.jsonl")
    assert len(rows) == 8 and len({row["prompt_id"] for row in rows}) == 4
    for own, better in zip(rows[::2], rows[1::2], strict=True):
        assert own["prompt_id"] == better["prompt_id"]
        assert better["text"] == of_better[better["prompt_id"]][0].rollout.text
    logged = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (update,) = (row for row in map(json.loads, logged) if row["kind"] == "update")
    assert all(f"loss/{kind}" in update["metrics"] for kind in KINDS)
