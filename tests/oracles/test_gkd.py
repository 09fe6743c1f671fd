"""arXiv 2306.13649: the divergence, its ends, and own rollouts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opd.config import dump, load_recipe
from opd.objective.loss import Distill
from tests.rows import A_STUDENT, A_TEACHER, pulled
from tests.runs import run
from tests.students import distance, recipe_terms


def between(teacher_weight: float) -> float:
    """What the recipe's loss makes of one row."""
    weight = f"terms.distil.loss.divergence.teacher_weight={teacher_weight}"
    loss = recipe_terms("gkd", weight)["distil"].loss
    assert isinstance(loss, Distill)
    return pulled(loss, A_STUDENT, plain=A_TEACHER)[0]


@pytest.mark.parametrize(
    ("teacher_weight", "nats"), [(0.1, 0.0090229), (0.5, 0.0263677), (0.9, 0.0102392)]
)
def test_the_divergence(teacher_weight: float, nats: float) -> None:
    assert between(teacher_weight) == pytest.approx(nats, abs=1e-7)


@pytest.mark.parametrize("near", [1e-6, 1e-7])
def test_over_its_weight_each_end_is_a_kl(near: float) -> None:
    """By itself it vanishes there."""
    assert between(near) / near == pytest.approx(0.0992728, abs=1e-6)
    assert between(1 - near) / near == pytest.approx(0.1166225, abs=1e-6)


def trained(student: Path, teacher: Path, output: Path, source: object) -> dict[str, torch.Tensor]:
    """The weights after four steps of the recipe's term on what the source gives."""
    changes: dict[str, Any] = {
        "terms": dump(recipe_terms("gkd")),
        "teacher": {
            "weights": {"name": "External", "path": str(teacher)},
            "views": {"plain": "Plain"},
        },
        "benchmarks": {},
        "checkpoint": {"every": 0},
    }
    run(student, output, source=source, **changes)
    return load_file(output / "model" / "model.safetensors")


def test_own_rollouts_alone_are_plain_distillation(
    tiny_model_dir: Path, tied_model_dir: Path, tmp_path: Path
) -> None:
    def left(name: str, source: object) -> dict[str, torch.Tensor]:
        return trained(tiny_model_dir, tied_model_dir, tmp_path / name, source)

    def mixed(share: float) -> object:
        second = "source.second={name: Demonstrations, read: solution}"
        return load_recipe("gkd", [second, f"source.share={share}"])["source"]

    base = left("base", "OnPolicy")
    own = left("own", mixed(1.0))
    assert all(torch.equal(own[name], base[name]) for name in base)
    assert distance(left("half", mixed(0.5)), base) > 1e-4
