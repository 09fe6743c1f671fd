"""Learning from answers that were scored once: its numbers, and the run with a live teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opd.config import build, dump
from opd.objective.correction import TruncatedImportance
from opd.objective.loss import PolicyGradient, SampledReverseKL
from opd.recipe import Recipe
from opd.stored import sample, score
from tests.batches import batch_of, seen_of
from tests.runs import run, tree
from tests.students import recipe_terms

TEACHER, STUDENT = (-0.1, -2.3, -0.5, -15.0), (-0.3, -1.2, -0.5, -0.2)
ADVANTAGES = [0.2, -1.1, 0.0, -10.0]


def recipe_loss(**changes: object) -> SampledReverseKL:
    loss = recipe_terms("lightning")["distil"].loss
    assert isinstance(loss, SampledReverseKL)
    return replace(loss, **changes)


def test_the_pull_at_each_token() -> None:
    logprob = torch.tensor(STUDENT, requires_grad=True)
    loss, observed = recipe_loss().tokens(logprob, batch_of([4]), {"plain": seen_of(TEACHER)})
    loss.sum().backward()
    assert logprob.grad is not None
    assert (-logprob.grad).tolist() == pytest.approx(ADVANTAGES, abs=1e-6)
    assert observed["clipped"].tolist() == [0, 0, 0, 1]
    free, _ = recipe_loss(clip_at=None).tokens(logprob, batch_of([4]), {"plain": seen_of(TEACHER)})
    assert (free / logprob)[3].item() == pytest.approx(14.8, abs=1e-5)


def test_a_second_update_would_be_clipped() -> None:
    """The authors' surrogate: with one update a batch its ratio is 1 and it pulls as ours does."""
    before = torch.tensor(STUDENT, dtype=torch.float64)
    after = (before + torch.tensor([0.3, -0.3, 0.0, 0.1])).requires_grad_()
    batch = batch_of([1, 1, 1, 1], advantage=ADVANTAGES, sampled_logprob=before)
    factor = TruncatedImportance(cap=9.0)(after, before)
    assert factor.tolist() == pytest.approx([1.349859, 0.740818, 1, 1.105171], abs=1e-6)
    loss, _ = PolicyGradient(clip_low=0.2, clip_high=0.2).tokens(after, batch, {})
    assert loss.tolist() == pytest.approx([-0.24, 0.88, 0, 11.051709], abs=1e-6)
    assert loss.mean().item() == pytest.approx(2.9229273, abs=1e-6)
    same = before.clone().requires_grad_()
    PolicyGradient().tokens(same, batch, {})[0].sum().backward()
    assert same.grad is not None
    assert (-same.grad).tolist() == pytest.approx(ADVANTAGES, abs=1e-6)


def test_what_is_lost_by_answers_of_the_initial_student() -> None:
    """A bandit: the covariance of importance and pull is all that parts it from fresh answers, and
    the variance of importance, .04, bounds it."""
    policy, teacher = torch.tensor([0.6, 0.4]), torch.tensor([0.8, 0.2]).log()
    initial = torch.tensor([0.5, 0.5]).log()
    importance = TruncatedImportance(cap=1e9)(policy.log(), initial)
    assert importance.square().mean().item() - 1 == pytest.approx(0.04, abs=1e-6)

    def pull(correction: TruncatedImportance | None) -> list[float]:
        logits = policy.log().requires_grad_()
        logprob = logits.log_softmax(-1)
        loss, _ = recipe_loss(correction=correction).tokens(
            logprob,
            batch_of([2], sampled_logprob=initial),
            {"plain": seen_of(teacher.tolist())},
        )
        # Each arm is half of what the initial student draws.
        (-loss.mean()).backward()
        assert logits.grad is not None
        return logits.grad.tolist()

    offline, online = pull(None), pull(TruncatedImportance(cap=1e9))
    assert offline == pytest.approx([0.265481, -0.265481], abs=1e-6)
    assert online == pytest.approx([0.235399, -0.235399], abs=1e-6)
    lost = [off - on for off, on in zip(offline, online, strict=True)]
    assert lost == pytest.approx([0.030082, -0.030082], abs=1e-6)


def test_a_student_that_is_the_teacher_is_left_alone() -> None:
    logprob = torch.tensor(STUDENT, requires_grad=True)
    loss, _ = recipe_loss().tokens(logprob, batch_of([4]), {"plain": seen_of(STUDENT)})
    loss.sum().backward()
    assert logprob.grad is not None and not logprob.grad.any()


def test_recorded_scores_are_the_live_teachers(
    tiny_model_dir: Path, tied_model_dir: Path, tmp_path: Path
) -> None:
    """Bit for bit, with one response in every pass."""
    rollouts, scores = tmp_path / "rollouts.jsonl", tmp_path / "scores"
    changes: dict[str, Any] = {
        "terms": dump(recipe_terms("lightning")),
        "tokens_per_batch": 1,
        "steps": 3,
        "benchmarks": {},
        "checkpoint": {"every": 0},
    }

    def teacher(weights: object) -> dict[str, object]:
        return {"weights": weights, "views": {"plain": "Plain"}, "tokens_per_batch": 1}

    external = teacher({"name": "External", "path": str(tied_model_dir)})
    live = tree(tiny_model_dir, tmp_path / "unused", teacher=external, **changes)
    sample(build(Recipe, live), 6, rollouts)
    score(build(Recipe, live), rollouts, scores)
    cached = teacher({"name": "Cached", "path": str(scores)})
    left = []
    for name, each in (("live", external), ("recorded", cached)):
        source = {"name": "Stored", "path": str(rollouts)}
        run(tiny_model_dir, tmp_path / name, **{**changes, "source": source, "teacher": each})
        left.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert left[0] == left[1]
    untrained = (tiny_model_dir / "model.safetensors").read_bytes()
    assert left[0] != untrained


def test_the_script_names_what_is_there() -> None:
    """Its commands are those of the recipe's paths."""
    root = Path(__file__).parents[2]
    script = (root / "scripts" / "lightning.sh").read_text()
    recipe = (root / "recipes" / "lightning.yaml").read_text()
    for name in ("runs/stored/lightning.jsonl", "runs/stored/lightning}"):
        assert name in recipe
    assert "stored=runs/stored" in script and '--to "$stored/lightning"' in script
