"""A rollout counts by how far it points where other problems point: arXiv 2501.02705. Worked by
hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opd.config import build, load_recipe
from opd.errors import RecipeError
from opd.learner.batch import assemble
from opd.learner.influence import GradientCosine, Scored, cosine, sketch, sketches
from opd.learner.learner import Learner
from opd.objective.weight import Influence
from opd.privileged import Trajectory
from opd.recipe import Recipe
from opd.teacher.score import Teacher
from opd.teacher.view import Solution
from opd.teacher.weights import Live
from tests.batches import batch_of
from tests.runs import run
from tests.students import distil, draw_trajectories, open_student


@pytest.mark.parametrize(
    ("scale", "weights"),
    [(0.0, [1, 1, 1, 1]), (1.0, [0, 0.5, 1, 2]), (3.0, [0, 0, 1, 4])],
)
def test_weights(scale: float, weights: list[float]) -> None:
    batch = batch_of([1] * 4, influence=[-1.0, -0.5, 0.0, 1.0])
    assert Influence(scale=scale)(batch, {}).tolist() == weights


def test_cosines_by_hand() -> None:
    found = cosine(
        torch.tensor([[3.0, 4.0], [-4.0, 3.0], [-1.0, 0.0], [0.0, 0.0]]), torch.tensor([3.0, 4.0])
    )
    assert found.tolist() == pytest.approx([1.0, 0.0, -0.6, 0.0], abs=1e-6)


def test_a_sketch_is_linear_and_keeps_angles() -> None:
    generator = torch.Generator().manual_seed(1)
    pull, hidden = torch.randn(2, 6, 64, generator=generator)
    batch = batch_of([4, 2])
    found = sketch(pull, hidden, batch, 32)
    assert torch.allclose(sketch(2 * pull, hidden, batch, 32), 2 * found)
    whole = torch.stack([(pull[i].T @ hidden[i]).flatten() for i in (slice(0, 4), slice(4, 6))])
    mixed = whole[0] + whole[1]
    exact = cosine(whole, mixed)
    assert torch.allclose(cosine(found, found.sum(0)), exact, atol=0.15)


def scored(learner: Learner, members: Sequence[Sequence[int]]) -> Scored:
    """Micro-batches of some drawn rollouts."""
    trajectories: list[Trajectory] = draw_trajectories()
    teacher = Teacher(weights=Live(), views={"solution": Solution()})
    teacher.setup(learner)
    batches = [assemble(trajectories, each, packing=False, pad_id=0) for each in members]
    return batches, teacher.score(trajectories, batches, ["solution"], learner)


def test_what_points_the_same_way_has_influence_one(tiny_model_dir: Path) -> None:
    learner, source = open_student(tiny_model_dir), GradientCosine()
    (one,) = source(scored(learner, [[4]]), learner, 0, lambda: scored(learner, [[4]]))
    assert one.influence.tolist() == pytest.approx([1.0], abs=1e-5)
    (blind,) = source(scored(learner, [[2]]), learner, 1, lambda: pytest.fail("is not due"))
    assert blind.influence.tolist() == [0.0], "a rollout without a view teaches nothing"


def test_influences_do_not_depend_on_the_split(tiny_model_dir: Path) -> None:
    learner = open_student(tiny_model_dir)

    def influences(members: list[list[int]]) -> dict[int, float]:
        others = [[5, 6]] if len(members) == 1 else [[5], [6]]
        batches = GradientCosine()(
            scored(learner, members), learner, 0, lambda: scored(learner, others)
        )
        return {m: c.item() for b in batches for m, c in zip(b.members, b.influence, strict=True)}

    whole, cut = influences([[0, 1, 3, 4]]), influences([[0], [1, 3], [4]])
    assert whole == pytest.approx(cut, abs=1e-4)
    assert len({round(c, 3) for c in whole.values()}) == 4
    assert all(parameter.grad is None for parameter in learner.parameters)


def test_a_rank_without_rollouts_gathers_as_often_as_the_others(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, times = open_student(tiny_model_dir), []

    def gathered(value: object) -> object:
        times.append(1)
        return value

    monkeypatch.setattr("opd.learner.learner.gather_object", gathered)
    for mine in (scored(learner, [[4]]), ([], [])):
        times.clear()
        source = GradientCosine()
        source(scored(learner, [[4]]), learner, 0, lambda mine=mine: mine)
        assert len(times) == 2
    assert source.direction is not None and not source.direction.any()


def test_the_direction_outlasts_a_checkpoint(tiny_model_dir: Path) -> None:
    learner, source, again = open_student(tiny_model_dir), GradientCosine(), GradientCosine()
    source(scored(learner, [[0]]), learner, 0, lambda: scored(learner, [[5, 6]]))
    again.load_state_dict(source.state_dict())
    assert again.direction is not None and source.direction is not None
    assert torch.equal(again.direction, source.direction)
    (whole,) = sketches(learner, scored(learner, [[5, 6]]), 0, 16)
    torch.testing.assert_close(again.direction, whole.sum(0))


def test_without_a_scale_it_is_the_base_method(tiny_model_dir: Path, tmp_path: Path) -> None:
    flat = load_recipe("kdaif", ["terms.distil.weights=[{name: Influence, scale: 0}]"])
    base = load_recipe("opsd")
    changes = {"steps": 2, "benchmarks": {}, "checkpoint": {"every": 0}}
    measured = {"name": "GradientCosine", "problems": 2}
    run(tiny_model_dir, tmp_path / "a", terms=flat["terms"], influence=measured, **changes)
    run(tiny_model_dir, tmp_path / "b", terms=base["terms"], **changes)
    found, expected = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("a", "b")
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_weight_without_influences_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"distil.weights: Influence is 1 throughout"):
        build(Recipe, load_recipe("kdaif", ["influence=NoInfluence"]))


def test_what_was_influenced_before_is_measured_afresh(tiny_model_dir: Path) -> None:
    learner = open_student(tiny_model_dir, {"distil": distil("solution", Influence(scale=1.0))})
    batches, scores = scored(learner, [[0, 1]])
    muted = [replace(batch, influence=torch.full((2,), -1.0)) for batch in batches]
    (found,), (expected,) = (sketches(learner, (each, scores), 0, 16) for each in (muted, batches))
    torch.testing.assert_close(found, expected)
    assert found.abs().sum() > 0
