"""What three views agree on, and a gated share of what one says more: arXiv 2605.20643."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opd.config import build, load_recipe
from opd.objective.loss import Distill, SampledReverseKL
from opd.objective.target import AlignedMean, ArithmeticMean, GeometricMean, OfSeveral
from opd.privileged import Group, Privileged, Problem
from opd.recipe import Recipe
from opd.types import Message, Prompt, Rollout, Verdict
from tests.batches import batch_of, seen_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of

Said = tuple[float, float, float]

ALONE = ("terms.distil.loss.divergence=ReverseKL", "terms.distil.loss.clip=none")
"""The single-view method by reverse KL and without its clip."""


def moved(student: float, said: Said, mean: type[OfSeveral] = AlignedMean) -> float:
    """A mean of the recipe's views minus the student at the taken token, nats."""
    loss = recipe_terms("avsd")["distil"].loss
    assert isinstance(loss, Distill) and isinstance(loss.target, AlignedMean)

    def side(p: float) -> Tensor:
        return torch.tensor([[p, 1 - p]], dtype=torch.float64).log()

    views = dict(zip(loss.target.views, map(side, said), strict=True))
    found, _ = mean(views=loss.target.views)(side(student), views, torch.zeros(1, dtype=torch.long))
    return (found - side(student))[0, 0].item()


@pytest.mark.parametrize(
    ("student", "said", "agreed", "excess", "share", "expected"),
    [
        (0.2, (0.4, 0.3, 0.5), 0.671634, 0.021513, 0.968964, 0.692479),
        (0.3, (0.6, 0.3, 0.1), -0.135155, 0.240516, 0.081414, -0.115574),
        (0.3, (0.1, 0.12, 0.6), -0.440585, 0.347495, 0.272869, -0.345765),
    ],
)
def test_gated_advantage(
    student: float, said: Said, agreed: float, excess: float, share: float, expected: float
) -> None:
    """What the views agree on, how much more one of them says, and how much of it counts."""
    consensus = moved(student, said, GeometricMean)
    more = moved(student, said, ArithmeticMean) - consensus
    assert consensus == pytest.approx(agreed, abs=1e-6) and more == pytest.approx(excess, abs=1e-6)
    found = moved(student, said)
    assert found == pytest.approx(expected, abs=1e-6)
    assert (found - consensus) / more == pytest.approx(share, abs=1e-6)


def test_a_naive_average_turns_the_direction_round() -> None:
    said = (0.6, 0.3, 0.1)
    assert moved(0.3, said, ArithmeticMean) == pytest.approx(0.105361, abs=1e-6)
    assert moved(0.3, said) < 0 and moved(0.3, said, GeometricMean) < 0


@pytest.mark.parametrize(
    ("student", "said", "expected"),
    [(0.2, (0.4, 0.3, 0.5), 1.114503), (0.3, (0.6, 0.3, 0.1), -0.139148)],
)
def test_the_papers_loss_of_the_sampled_token(student: float, said: Said, expected: float) -> None:
    logprob = torch.tensor([student]).log()
    target = {"target": seen_of([logprob.item() + moved(student, said)])}
    loss, _ = SampledReverseKL(view="target").tokens(logprob, batch_of([1]), target)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_views_that_say_what_the_student_says_pull_nowhere() -> None:
    assert moved(0.3, (0.3, 0.3, 0.3)) == pytest.approx(0, abs=1e-12)


def test_equal_views_are_one_view(tiny_model_dir: Path) -> None:
    """Loss and gradient of the single-view method by reverse KL and without its clip."""
    terms = recipe_terms("avsd")
    names = terms["distil"].views
    same = [
        replace(each, views=dict.fromkeys(names, each.views["solution"]))
        for each in draw_trajectories()
        if "solution" in each.views
    ]
    alone = recipe_terms("opsd", *ALONE)
    loss, found = update_of(tiny_model_dir, terms, same)
    expected_loss, expected = update_of(tiny_model_dir, alone, same)
    assert loss == pytest.approx(expected_loss, rel=1e-5) and distance(found, expected) < 1e-4


def shown(recipe: str, *verdicts: Verdict) -> list[dict[str, str]]:
    """What each view of a recipe shows of each attempt at one problem, after its question."""
    prompt = Prompt("p", (Message("user", "374+806"),))
    solution, answer = "1000+100+80+0", "1180"
    privileged = Privileged(solution, answer, f"{solution};#{answer}")
    rollout = Rollout(prompt, (1,), (2,), (0.0,), 0, "stop", "")
    group = Group(Problem(prompt, privileged), (rollout,) * len(verdicts), verdicts)
    views = build(Recipe, load_recipe(recipe)).teacher.views
    of_each = [
        {name: view.messages(group, index) for name, view in views.items()}
        for index in range(len(verdicts))
    ]
    return [
        {name: said[-1].content.removeprefix("374+806 ref: ") for name, said in of.items() if said}
        for of in of_each
    ]


def test_the_three_views_of_a_problem() -> None:
    expected = {"solution": "1000+100+80+0", "partial": "1000+100", "answer": "1180"}
    assert shown("avsd", Verdict("fail", 0.0)) == [expected]


def test_each_of_five_views_has_something_to_say_of_a_right_attempt_too() -> None:
    """A token counts where every view of the mean is present, and graders praise nothing."""
    always = {
        "solution": "1000+100+80+0",
        "partial": "1000+100",
        "answer": "1180",
        "demonstration": "1000+100+80+0;#1180",
    }
    assert shown("avsd_five", Verdict("fail", 0.0, "wrong"), Verdict("pass", 1.0)) == [
        {**always, "feedback": "wrong"},
        {**always, "feedback": "1180"},
    ]
    loss = recipe_terms("avsd_five")["distil"].loss
    assert set(loss.needed) == {"feedback", *always}


def test_five_views_that_say_the_same_are_one(tiny_model_dir: Path) -> None:
    """And one of them that says something else is heard."""
    terms = recipe_terms("avsd_five")
    names = terms["distil"].views
    seen = [each for each in draw_trajectories() if "solution" in each.views]
    same = [replace(each, views=dict.fromkeys(names, each.views["solution"])) for each in seen]
    apart = [replace(each, views={**each.views, "feedback": (7, 8, 9)}) for each in same]
    alone = recipe_terms("opsd", *ALONE)
    _, expected = update_of(tiny_model_dir, alone, same)
    assert distance(update_of(tiny_model_dir, terms, same)[1], expected) < 1e-4
    assert distance(update_of(tiny_model_dir, terms, apart)[1], expected) > 1e-2
