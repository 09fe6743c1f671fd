"""Leaps along the way that training has come: arXiv 2605.11739."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opd.config import build, load_recipe
from opd.learner.extrapolate import Leap, places
from opd.learner.learner import Learner
from opd.learner.model import merged_weights
from opd.recipe import Recipe
from tests.runs import run
from tests.students import open_student


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in merged_weights(learner.model)}


def fill(learner: Learner, value: float) -> None:
    for _, place in places(learner.model):
        place.parameter.data.fill_(value)


def watching(learner: Learner, found: Iterator[float]) -> tuple[Callable[[], float], list[float]]:
    """A value that notes what every matrix holds when it is asked for."""
    seen: list[float] = []

    def value() -> float:
        held = {place.parameter.unique().item() for _, place in places(learner.model)}
        seen.append(round(held.pop(), 6))
        assert not held
        return next(found)

    return value, seen


@pytest.mark.parametrize(
    ("before", "after", "done", "candidates"),
    [(0.0, 1.0, 1, [3, 5, 7, 9, 11]), (1.0, 1.5, 2, [2.5, 3.5, 4.5, 5.5, 6.5])],
)
def test_candidates(
    tiny_model_dir: Path, before: float, after: float, done: int, candidates: list[float]
) -> None:
    learner, leap = open_student(tiny_model_dir), Leap()
    fill(learner, before)
    leap.setup(learner)
    fill(learner, after)
    value, seen = watching(learner, iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    assert leap(done, learner, value)["leap/reach"] == 5
    assert seen == pytest.approx([after, *candidates])
    factors = [2.0]
    while len(factors) < 5:
        factors.append(factors[-1] / (1 + factors[-1]))
    held = after
    for factor, candidate in zip(factors, candidates, strict=True):
        held = held + factor * (held - before)
        assert held == pytest.approx(candidate), "the authors' recursion ends in the same places"


@pytest.mark.parametrize(
    ("accept", "values", "reach"),
    [
        ("better", [0.40, 0.42, 0.45, 0.44], 2),
        ("no_worse", [0.40, 0.42, 0.45, 0.44], 2),
        ("better", [0.40, 0.40], 0),
        ("no_worse", [0.40, 0.40, 0.39], 1),
        ("better", [0.40, 0.30], 0),
    ],
)
@pytest.mark.parametrize("lora", [False, True])
def test_leaps_go_on_until_the_first_that_fails(
    tiny_model_dir: Path, accept: str, values: list[float], reach: int, lora: bool
) -> None:
    learner, leap = open_student(tiny_model_dir, lora=lora), Leap(accept=accept)  # type: ignore[arg-type]
    leap.setup(learner)
    start = {name: place.read() for name, place in places(learner.model)}
    for _, place in places(learner.model):
        place.parameter.data.add_(0.01 * torch.randn_like(place.parameter))
    before = weights(learner)
    moved = {name: place.read() for name, place in places(learner.model)}
    found = leap(4, learner, iter(values).__next__)
    assert found["leap/reach"] == reach and found["leap/solved"] == max(values[: reach + 1])
    after = weights(learner)
    if reach == 0:
        assert all(torch.equal(after[name], before[name]) for name in before)
    else:
        for name, place in places(learner.model):
            expected = moved[name] + 2 * reach * (moved[name] - start[name])
            assert (place.read() - expected).norm() <= 1e-5 * expected.norm()
        still = [n for n in before if "norm" in n or "embed" in n or "head" in n]
        assert still and all(torch.equal(after[name], before[name]) for name in still)
    held = {name: place.read() for name, place in places(learner.model)}
    assert all(torch.equal(leap.origin[name], held[name]) for name in held)


def test_the_recipe_goes_past_a_tie(tiny_model_dir: Path) -> None:
    """As its own run does after the first step."""
    learner = open_student(tiny_model_dir)
    leap = build(Recipe, load_recipe("effopd")).extrapolation
    leap.setup(learner)
    found = leap(1, learner, iter([0.32, 0.32, 0.34, 0.38, 0.32]).__next__)
    assert found["leap/reach"] == 3 and found["leap/solved"] == 0.38


def test_an_adapter_leaps_by_its_product(tiny_model_dir: Path) -> None:
    """While A stands where it stood, the product is met; with both factors it would not be."""
    learner, leap = open_student(tiny_model_dir, lora=True), Leap(reaches=1)
    leap.setup(learner)
    start = {name: place.read() for name, place in places(learner.model)}
    for name, parameter in learner.model.named_parameters():
        if ".lora_B." in name:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    moved = {name: place.read() for name, place in places(learner.model)}
    found = leap(2, learner, iter([0.1, 0.2]).__next__)
    assert found["leap/missed"] < 1e-6
    for name, place in places(learner.model):
        torch.testing.assert_close(
            place.read(), 3 * moved[name] - 2 * start[name], rtol=1e-4, atol=1e-5
        )


def test_leaps_come_after_powers_of_two(tiny_model_dir: Path) -> None:
    learner, leap = open_student(tiny_model_dir), Leap(reaches=1)
    leap.setup(learner)
    asked = [done for done in range(1, 18) if leap(done, learner, lambda: 0.5)]
    assert asked == [1, 2, 4, 8, 16]


def test_where_it_came_from_outlasts_a_checkpoint(tiny_model_dir: Path) -> None:
    learner, leap, again = open_student(tiny_model_dir), Leap(), Leap()
    leap.setup(learner)
    fill(learner, 1.0)
    again.setup(learner)
    again.load_state_dict(leap.state_dict())
    assert all(torch.equal(again.origin[name], leap.origin[name]) for name in leap.origin)


def trained(folder: Path, output: Path, extrapolation: object) -> dict[str, torch.Tensor]:
    terms = load_recipe("effopd")["terms"]
    changes = {"terms": terms, "extrapolation": extrapolation, "benchmarks": {}}
    run(folder, output, **changes, checkpoint={"every": 0})
    return load_file(output / "model" / "model.safetensors")


def test_without_leaps_it_is_the_base_method(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A random model solves nothing, so every leap is measured and refused."""
    plain = trained(tiny_model_dir, tmp_path / "plain", "Stay")
    none = trained(tiny_model_dir, tmp_path / "none", {"name": "Leap", "reaches": 0})
    refused = trained(tiny_model_dir, tmp_path / "refused", {"name": "Leap", "problems": 2})
    for found in (none, refused):
        assert all(torch.equal(found[name], plain[name]) for name in plain)
    rows = [json.loads(line) for line in (tmp_path / "refused" / "metrics.jsonl").open()]
    reaches = {row["step"]: row["metrics"].get("leap/reach") for row in rows}
    assert reaches == {1: 0, 2: 0, 3: None, 4: 0}


def test_a_leap_reaches_the_sampler(tiny_model_dir: Path, tmp_path: Path) -> None:
    """With ties taken every leap is kept, and the next rollouts come from where it ended."""
    leaps = {"name": "Leap", "problems": 2, "accept": "no_worse", "reaches": 2}
    trained(tiny_model_dir, tmp_path / "leaps", leaps)
    rows = [json.loads(line) for line in (tmp_path / "leaps" / "metrics.jsonl").open()]
    assert [row["metrics"].get("leap/reach") for row in rows] == [2, 2, None, 2]
    assert max(row["metrics"]["mismatch/max"] for row in rows) < 1e-3
