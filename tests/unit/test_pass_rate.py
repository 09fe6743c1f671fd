"""Where pass rates come from, when they are measured, and what they leave out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from opd.config import build, load_recipe, part
from opd.errors import DataError, RecipeError
from opd.pass_rate import Measured, OfGroup, PassRates
from opd.privileged import Group, Privileged, Problem
from opd.recipe import Recipe
from opd.reward import Reward
from opd.types import Message, Prompt, Rollout, Status, Verdict
from tests.runs import run

PROBLEMS = tuple(Problem(Prompt(f"p{i}", (Message("user", "?"),)), Privileged()) for i in range(5))


def group(problem: Problem, verdicts: str) -> Group:
    """A group whose rollouts pass, fail or have no verdict, a letter each."""
    words: dict[str, Status] = {"p": "pass", "f": "fail", "n": "no_verdict"}
    rollout = Rollout(problem.prompt, (), (1,), (0.0,), 0, "stop", "")
    made = tuple(Verdict(words[letter], float(letter == "p")) for letter in verdicts)
    return Group(problem, (rollout,) * len(made), made)


class Student:
    """Solves problem i in i of 4 rollouts, or as many more as it has been trained."""

    def __init__(self) -> None:
        self.better = 0
        self.asked: list[tuple[int, int, str]] = []

    def draw(self, problems: Sequence[Problem], count: int, occasion: str) -> list[Group]:
        self.asked.append((len(problems), count, occasion))
        successes = [min(4, int(p.prompt.id[1:]) + self.better) for p in problems]
        return [group(p, "p" * n + "f" * (4 - n)) for p, n in zip(problems, successes, strict=True)]


def rates(source: PassRates) -> list[float]:
    return [source.of(group(problem, "f")) for problem in PROBLEMS]


def test_a_group_speaks_for_itself() -> None:
    assert OfGroup().of(group(PROBLEMS[0], "ppfn")) == pytest.approx(2 / 3)
    assert OfGroup().of(group(PROBLEMS[0], "nn")) == 0.0
    assert OfGroup(pseudo_count=0.5).of(group(PROBLEMS[0], "pp")) == pytest.approx(2.5 / 3)
    assert OfGroup().known == () and OfGroup().drawable(PROBLEMS) == PROBLEMS


@pytest.mark.parametrize(
    ("settings", "measured"),
    [({}, [0]), ({"refresh_every": 2}, [0, 2, 4]), ({"at_steps": (3,)}, [0, 3])],
)
def test_pass_rates_are_measured_when_they_are_due(settings: dict, measured: list[int]) -> None:
    student, source = Student(), Measured(rollouts=4, **settings)
    for step in range(5):
        source.refresh(step, PROBLEMS, student.draw)
        student.better += 1
    assert student.asked == [(5, 4, f"pass_rate/{step}") for step in measured]
    last = measured[-1]
    assert rates(source) == [min(1.0, (i + last) / 4) for i in range(5)]


def test_pass_rates_outlast_a_checkpoint() -> None:
    student, source = Student(), Measured(rollouts=4, refresh_every=2)
    source.refresh(0, PROBLEMS, student.draw)
    again = Measured(rollouts=4, refresh_every=2)
    again.load_state_dict(source.state_dict())
    student.better = 1
    for step in (0, 1):
        again.refresh(step, PROBLEMS, student.draw)
    assert len(student.asked) == 1 and rates(again) == rates(source)
    again.refresh(2, PROBLEMS, student.draw)
    assert rates(again) == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_what_is_always_or_never_solved_is_not_drawn() -> None:
    source = Measured(rollouts=4, between=(0, 1))
    source.refresh(0, PROBLEMS, Student().draw)
    assert source.drawable(PROBLEMS) == PROBLEMS[1:4]
    assert source.known == (0.25, 0.5, 0.75)
    assert source.metrics()["pass_rate/drawable"] == pytest.approx(3 / 5)
    assert source.metrics()["pass_rate/mean"] == pytest.approx(0.5)
    smoothed = Measured(rollouts=4, between=(0, 1), pseudo_count=0.5)
    smoothed.refresh(0, PROBLEMS, Student().draw)
    assert smoothed.drawable(PROBLEMS) == PROBLEMS
    assert rates(smoothed) == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])


def test_nothing_left_to_draw_is_one_sentence() -> None:
    source = Measured(rollouts=4, between=(0.8, 0.9))
    source.refresh(0, PROBLEMS, Student().draw)
    with pytest.raises(DataError, match=r"pass_rate.between: before step 0 none of 5 problems"):
        source.drawable(PROBLEMS)


def is_even(problem_id: str) -> bool:
    return int(problem_id.split("-")[-1], 16) % 2 == 0


@part
class EvenIds(Reward):
    """Passes every other rollout of the problems whose id is even."""

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        passed = [index % 2 == 0 and is_even(problem.prompt.id) for index in range(len(rollouts))]
        return [Verdict("pass" if each else "fail", float(each)) for each in passed]


def test_only_what_can_be_learnt_from_is_drawn_and_all_is_counted(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    measured = {"name": "Measured", "rollouts": 2, "between": [0, 1]}
    changes = {"reward": f"{__name__}:EvenIds", "pass_rate": measured, "problems_per_step": 4}
    summary = run(tiny_model_dir, tmp_path / "run", steps=2, benchmarks={}, **changes)
    rollouts = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").open()]
    assert rollouts and all(is_even(row["prompt_id"]) for row in rollouts)
    assert summary["generated_tokens"] > summary["learner_tokens"] > 0
    metrics = [json.loads(line)["metrics"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert metrics[0]["pass_rate/drawable"] == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        ("scsdpo", "source={rollouts_per_problem: 1}", "a Sibling view|a single rollout is 0"),
        ("paced", "pass_rate=OfGroup", r"a single rollout is 0"),
        ("paced", "pass_rate={name: OfGroup, pseudo_count: 1}", r"does not know"),
        ("paced", "terms.cover.denominator=weights", r"divides by the weights again"),
        ("paced", "terms.cover.average=weighted_sequence", r"divides by the weights again"),
    ],
)
def test_weights_that_would_say_nothing_are_refused(
    recipe: str, override: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        build(Recipe, load_recipe(recipe, [override]))
