"""A teacher for each kind of problem: none ever sees a response to a problem of another kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opd.config import build, load_recipe, locate
from opd.learner.batch import pack
from opd.objective.loss import PolicyGradient
from opd.privileged import Group, Trajectory
from opd.recipe import Recipe
from opd.rollout.chat import Chat
from opd.show import as_rollout
from opd.teacher import score
from opd.teacher.sweep import sweep
from opd.teacher.weights import Frozen, Live
from opd.types import Verdict
from tests.batches import batch_of, seen_of
from tests.students import distance, draw_trajectories, open_student, recipe_terms, update_of

KINDS = ("facts", "skills")


@pytest.mark.parametrize("kind", KINDS)
def test_advantages_and_the_sum_over_two_tokens(kind: str) -> None:
    loss = recipe_terms("tmopd_routed")[kind].loss
    assert isinstance(loss, PolicyGradient)
    sampled = torch.tensor([-0.3, -1.2])
    batch = batch_of([2], sampled_logprob=sampled, advantage=[5.0])
    teacher = {kind: seen_of([-0.1, -2.3])}
    moved = sampled + torch.tensor([0.1, -0.2])
    assert loss.tokens(moved, batch, teacher)[0].sum().item() == pytest.approx(0.6795696, abs=1e-6)
    start = sampled.clone().requires_grad_()
    loss.tokens(start, batch, teacher)[0].sum().backward()
    assert start.grad is not None and (-start.grad).tolist() == pytest.approx([0.2, -1.1])


def test_teachers_that_agree_are_one_teacher(tiny_model_dir: Path) -> None:
    plain = draw_trajectories("plain")
    routed = [
        replace(each, views={KINDS[number % 2]: each.views["plain"]} if each.views else {})
        for number, each in enumerate(plain)
    ]
    terms = recipe_terms("tmopd_routed")
    _, found = update_of(tiny_model_dir, terms, routed)
    # One of the rollouts has no teacher; there `tmopd` alone would go by its reward.
    taught = [each for each in plain if each.views]
    _, expected = update_of(tiny_model_dir, recipe_terms("tmopd"), taught)
    assert distance(found, expected) < 1e-5
    one_kind = {"facts": replace(terms["facts"], pool=None)}
    assert distance(update_of(tiny_model_dir, one_kind, routed)[1], expected) > 1e-2


def test_no_teacher_meets_a_problem_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = build(Recipe, load_recipe("tmopd_routed"))
    problems = recipe.problems.problems()
    sides = {"weights": Live(), "weights_by_view": {"skills": Frozen()}}
    teacher = replace(recipe.teacher, **sides)
    teacher.open_views(problems)
    by_kind = {kind: [p for p in problems if p.labels["family"] == kind] for kind in KINDS}
    chosen = (*by_kind["facts"][:5], *by_kind["skills"][:4])
    chat = Chat.open(locate("data/tiny"))
    trajectories: list[Trajectory] = []
    for number, problem in enumerate(chosen):
        rollout = as_rollout(problem, f"{number};#1", chat)
        group = Group(problem, (rollout,), (Verdict("fail", 0.0),))
        views = teacher.contexts(group, 0, KINDS, chat)
        assert tuple(views) == (problem.labels["family"],)
        trajectories.append(Trajectory(rollout, group.verdicts[0], 0.0, 0.0, views))
    learner = open_student(Path(locate("data/tiny")), recipe.terms)
    teacher.setup(learner)
    asked: dict[str, list[Sequence[int]]] = {}

    def watched(model: object, prompts: Any, responses: Any, **options: Any) -> Iterator[Any]:
        asked["facts" if model is learner.model else "skills"] = sorted(responses)
        return sweep(model, prompts, responses, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(score, "sweep", watched)
    batches = pack(trajectories, tokens_per_batch=10_000, packing=False, pad_id=0)
    (seen,) = teacher.score(trajectories, batches, KINDS, learner)
    of_kind = {
        kind: [t.rollout.token_ids for t in trajectories if kind in t.views] for kind in KINDS
    }
    assert asked == {kind: sorted(rows) for kind, rows in of_kind.items()}
    assert [len(rows) for rows in of_kind.values()] == [5, 4]
    assert bool((seen["facts"].present ^ seen["skills"].present).all())
