"""Learning from answers that were scored once: its numbers, and the run with a live teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd.objective.correction import TruncatedImportance
from opd.objective.loss import PolicyGradient, SampledReverseKL
from tests.batches import batch_of, seen_of

TEACHER, STUDENT = (-0.1, -2.3, -0.5, -15.0), (-0.3, -1.2, -0.5, -0.2)
ADVANTAGES = [0.2, -1.1, 0.0, -10.0]


def test_the_pull_at_each_token() -> None:
    logprob = torch.tensor(STUDENT, requires_grad=True)
    loss, observed = SampledReverseKL(view="plain", clip_at=10.0).tokens(
        logprob, batch_of([4]), {"plain": seen_of(TEACHER)}
    )
    loss.sum().backward()
    assert logprob.grad is not None
    assert (-logprob.grad).tolist() == pytest.approx(ADVANTAGES, abs=1e-6)
    assert observed["clipped"].tolist() == [0, 0, 0, 1]
    free, _ = SampledReverseKL(view="plain").tokens(
        logprob, batch_of([4]), {"plain": seen_of(TEACHER)}
    )
    assert (free / logprob)[3].item() == pytest.approx(14.8, abs=1e-5)


def test_a_second_update_would_be_clipped() -> None:
    """The authors' surrogate: with one update a batch its ratio is 1 and it pulls as ours does."""
    before = torch.tensor(STUDENT, dtype=torch.float64)
    after = (before + torch.tensor([0.3, -0.3, 0.0, 0.1])).requires_grad_()
    batch = batch_of([1, 1, 1, 1], advantage=ADVANTAGES, sampled_logprob=before)
    loss, _ = PolicyGradient(clip_low=0.2, clip_high=0.2).tokens(after, batch, {})
    assert loss.tolist() == pytest.approx([-0.24, 0.88, 0, 11.051709], abs=1e-6)
    assert loss.mean().item() == pytest.approx(2.9229273, abs=1e-6)
    same = before.clone().requires_grad_()
    PolicyGradient().tokens(same, batch, {})[0].sum().backward()
    assert same.grad is not None
    assert (-same.grad).tolist() == pytest.approx(ADVANTAGES, abs=1e-6)


def test_what_is_lost_by_answers_of_the_initial_student() -> None:
    """A bandit: the covariance of importance and pull is all that parts it from fresh answers."""
    policy, teacher = torch.tensor([0.6, 0.4]), torch.tensor([0.8, 0.2]).log()

    def pull(correction: TruncatedImportance | None) -> list[float]:
        logits = policy.log().requires_grad_()
        logprob = logits.log_softmax(-1)
        loss, _ = SampledReverseKL(view="plain", correction=correction).tokens(
            logprob,
            batch_of([2], sampled_logprob=torch.tensor([0.5, 0.5]).log()),
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
    loss, _ = SampledReverseKL(view="plain", clip_at=10.0).tokens(
        logprob, batch_of([4]), {"plain": seen_of(STUDENT)}
    )
    loss.sum().backward()
    assert logprob.grad is not None and not logprob.grad.any()


def test_the_script_names_what_is_there() -> None:
    """Its commands are those of the recipe's paths."""
    root = Path(__file__).parents[2]
    script = (root / "scripts" / "lightning.sh").read_text()
    recipe = (root / "recipes" / "lightning.yaml").read_text()
    for name in ("runs/stored/lightning.jsonl", "runs/stored/lightning}"):
        assert name in recipe
    assert "stored=runs/stored" in script and '--to "$stored/lightning"' in script
