"""A term that trains the policy behind a view: the same as if that view were the prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opd.config import build
from opd.errors import RecipeError
from opd.learner.batch import pack
from opd.objective.divergence import ReverseKL
from opd.objective.hidden_loss import HiddenInformation, HiddenSquares
from opd.objective.loss import Distill, HiddenLoss, Likelihood
from opd.objective.sequence_loss import SuccessClassifier
from opd.objective.term import Term
from opd.objective.weight import FirstTokens
from opd.privileged import Trajectory
from opd.recipe import Recipe
from opd.teacher.score import Teacher
from opd.teacher.view import Plain
from opd.teacher.weights import Frozen
from opd.types import Update
from tests.runs import run, tree
from tests.students import distance, draw_trajectories, gradients, open_student


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in the same order every time."""
    torch.set_num_threads(1)


def step(
    folder: Path,
    terms: Mapping[str, Term],
    trajectories: Sequence[Trajectory],
    *,
    packing: bool = False,
    tokens_per_batch: int = 10_000,
) -> tuple[Update, dict[str, Tensor]]:
    """One update, its micro-batches made as the loop makes them."""
    learner = open_student(folder, terms)
    teacher = Teacher(weights=Frozen(), views={"solution": Plain(), "plain": Plain()})
    teacher.weights.setup(learner)
    batches, scores = [], []
    for context, inside in learner.contexts(0).items():
        if not inside:
            continue
        packed = pack(
            trajectories,
            tokens_per_batch=tokens_per_batch,
            packing=packing,
            pad_id=0,
            context=context,
        )
        views = list(dict.fromkeys(view for term in inside.values() for view in term.views))
        batches += packed
        scores += teacher.score(trajectories, packed, views, learner)
    return learner.update(batches, scores, 0), gradients(learner)


def shown() -> list[Trajectory]:
    """With the student's own prompt as a second view."""
    return [
        replace(t, views={**t.views, "plain": t.rollout.prompt_ids}) for t in draw_trajectories()
    ]


def behind_the_solution(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The same responses as if the solution were their prompt."""
    return [
        replace(t, rollout=replace(t.rollout, prompt_ids=t.views["solution"]))
        for t in trajectories
        if "solution" in t.views
    ]


LOSSES = {
    "likelihood": Term(loss=Likelihood(), average="sequence"),
    "distil": Term(loss=Distill(target="plain", divergence=ReverseKL())),
    "classifier": Term(loss=SuccessClassifier(view="plain"), average="sequence"),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("packing", "budget"), [(False, 10_000), (True, 50), (False, 1)])
def test_a_context_takes_the_place_of_the_prompt(
    tiny_model_dir: Path, name: str, packing: bool, budget: int
) -> None:
    term = LOSSES[name]
    behind = {"term": replace(term, context="solution")}
    update, found = step(tiny_model_dir, behind, shown(), packing=packing, tokens_per_batch=budget)
    same, expected = step(tiny_model_dir, {"term": term}, behind_the_solution(shown()))
    assert distance(expected, found) < 1e-5
    assert update.metrics["loss/term"] == pytest.approx(same.metrics["loss/term"], rel=1e-4)
    assert update.tokens == same.tokens


def test_contexts_add_up(tiny_model_dir: Path) -> None:
    terms = {"own": LOSSES["distil"], "behind": replace(LOSSES["likelihood"], context="solution")}
    _, both = step(tiny_model_dir, terms, shown(), tokens_per_batch=50)
    alone = [step(tiny_model_dir, {name: term}, shown())[1] for name, term in terms.items()]
    assert distance(both, {name: alone[0][name] + alone[1][name] for name in both}) < 1e-5


@pytest.mark.parametrize(
    ("loss", "rounding"),
    # The bound adds up cosines over 0.1: numbers of 10, of which float32 keeps 1e-6.
    [(HiddenSquares(view="solution"), 0.0), (HiddenInformation(view="solution"), 1e-6)],
    ids=["squares", "information"],
)
def test_hidden_losses_do_not_see_how_an_update_is_cut(
    tiny_model_dir: Path, loss: HiddenLoss, rounding: float
) -> None:
    term = Term(loss=loss, weights=(FirstTokens(skip=1, keep=7),), average="sequence")
    terms = {"hidden": term, "distil": LOSSES["distil"]}
    whole, expected = step(tiny_model_dir, terms, shown())
    alone = [step(tiny_model_dir, {name: one}, shown())[1] for name, one in terms.items()]
    assert distance(expected, {n: alone[0][n] + alone[1][n] for n in expected}) < 1e-5
    for packing, budget in ((True, 10_000), (False, 1), (True, 50)):
        update, found = step(
            tiny_model_dir, terms, shown(), packing=packing, tokens_per_batch=budget
        )
        assert distance(expected, found) < 1e-5
        assert update.metrics["loss/hidden"] == pytest.approx(
            whole.metrics["loss/hidden"], rel=1e-4, abs=rounding
        )


def test_hidden_states_of_the_student_itself_teach_nothing(tiny_model_dir: Path) -> None:
    same = [replace(t, views={"plain": t.rollout.prompt_ids}) for t in draw_trajectories()]
    update, found = step(tiny_model_dir, {"hidden": Term(loss=HiddenSquares(view="plain"))}, same)
    assert update.metrics["loss/hidden"] < 1e-10
    assert max(float(value.abs().max()) for value in found.values()) < 1e-4


def test_a_context_is_a_view_of_the_teacher(tmp_path: Path) -> None:
    terms = {"behind": {"loss": "Likelihood", "context": "solved"}}
    with pytest.raises(RecipeError, match=r"terms\.behind: it reads the view 'solved'"):
        build(Recipe, tree(tmp_path, tmp_path, terms=terms))


def test_steps_may_train_one_context_and_then_the_other(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    distil = {"name": "Distill", "target": "solution", "divergence": "ReverseKL"}
    classify = {"name": "SuccessClassifier", "view": "plain"}
    solution = {"name": "Solution", "template": "$question $solution"}
    terms = {
        "own": {"loss": distil, "coefficient": turn(1, 0)},
        "behind": {"loss": classify, "context": "solution", "coefficient": turn(0, 1)},
    }
    teacher = {"weights": "Live", "views": {"solution": solution, "plain": "Plain"}}
    run(tiny_model_dir, tmp_path / "run", terms=terms, teacher=teacher, steps=2, packing=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [row["metrics"] for row in map(json.loads, lines) if row["kind"] == "update"]
    assert ["loss/own" in row for row in rows] == [True, False]
    assert ["loss/behind" in row for row in rows] == [False, True]
    assert all(row["grad_norm"] > 0 for row in rows)


def turn(first: float, second: float) -> dict[str, object]:
    return {"name": "Alternate", "values": [first, second], "lengths": [1, 1]}
