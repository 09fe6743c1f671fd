"""Likelihood of another's text: its numbers, and what it is in expectation. Worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd.config import build
from opd.objective.divergence import CrossEntropy, ForwardKL
from opd.objective.logits import Logits
from opd.objective.loss import Likelihood
from opd.recipe import Recipe
from opd.stored import sample
from tests.runs import run, tree
from tests.unit.test_loop import rows

TEACHER, STUDENT = (0.7, 0.2, 0.1), (0.5, 0.25, 0.25)


def losses() -> torch.Tensor:
    """Of each of the three tokens."""
    student = Logits(torch.tensor(STUDENT).log().expand(3, 3))
    found, _ = Likelihood().rows(student, torch.arange(3), torch.zeros(3), {})
    return found


def test_the_mean_of_two_tokens() -> None:
    assert losses()[[0, 1]].mean().item() == pytest.approx(1.0397208, abs=1e-6)


def test_over_the_teachers_samples_it_is_cross_entropy() -> None:
    student, teacher = (torch.tensor([side]).log() for side in (STUDENT, TEACHER))
    assert (torch.tensor(TEACHER) * losses()).sum().item() == pytest.approx(0.9010913, abs=1e-6)
    assert CrossEntropy()(student, teacher).item() == pytest.approx(0.9010913, abs=1e-6)
    assert ForwardKL()(student, teacher).item() == pytest.approx(0.0992728, abs=1e-6)


def test_it_is_imitation_of_the_same_texts(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Demonstrations that are stored first and then learned from make the very same updates."""
    imitate = {"imitate": {"loss": "Likelihood"}}
    changes = {"terms": imitate, "teacher": {}, "steps": 2}
    demonstrations = {"name": "Demonstrations", "read": "solution"}
    written = tree(tiny_model_dir, tmp_path / "unused", source=demonstrations, **changes)
    path = tmp_path / "texts.jsonl"
    sample(build(Recipe, written), 100, path)
    assert "null" in path.read_text()
    for name, source in {
        "written": demonstrations,
        "as_drawn": {"name": "Stored", "path": str(path)},
        "text": {"name": "Stored", "path": str(path), "learned": "text"},
    }.items():
        run(tiny_model_dir, tmp_path / name, source=source, **changes)
    written_down, *stored = (
        [row["metrics"]["loss/imitate"] for row in rows(tmp_path / name, "update")]
        for name in ("written", "as_drawn", "text")
    )
    assert len(written_down) == 2 and stored == [written_down, written_down]
    weights = {(tmp_path / n / "model/model.safetensors").read_bytes() for n in ("written", "text")}
    assert len(weights) == 1
