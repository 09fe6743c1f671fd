"""Factors of whole responses against another sampler, as TRL and verl have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.correction import Correction, MaskedImportance, TruncatedImportance
from opd.objective.loss import PolicyGradient
from opd.objective.sequence_loss import Corrected
from tests.batches import batch_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of

TRAINED, SAMPLING = torch.tensor([-1.0, -0.5, -2.0]), torch.tensor([-1.2, -0.4, -3.5])


def pulls(loss: Corrected) -> list[float]:
    """What pulls at the three tokens of a response of advantage 1, and at one as it was drawn."""
    leaf = torch.cat([TRAINED, torch.tensor([-1.0])]).requires_grad_()
    sampled = torch.cat([SAMPLING, torch.tensor([-1.0])])
    batch = batch_of([3, 1], advantage=[1.0, 1.0], sampled_logprob=sampled)
    value, observed = loss.sequences(leaf, batch, {})
    value.sum().backward()
    assert leaf.grad is not None and not observed["factor"].requires_grad
    return (-leaf.grad).tolist()


@pytest.mark.parametrize(
    ("correction", "of", "factor"),
    [
        (MaskedImportance(high=3.0), "product", 0.0),
        (MaskedImportance(high=5.0), "product", 4.953032),
        (MaskedImportance(high=9.0, low=4.96), "product", 0.0),
        (TruncatedImportance(cap=2.0), "product", 2.0),
        (TruncatedImportance(cap=2.0), "mean", 1.704605),
        (MaskedImportance(high=1.5), "mean", 0.0),
    ],
)
def test_one_factor_a_response(correction: Correction, of: str, factor: float) -> None:
    loss = Corrected(loss=PolicyGradient(), correction=correction, of=of)  # pyright: ignore
    kept = 1.0 if not isinstance(correction, MaskedImportance) or correction.low == 0 else 0.0
    assert pulls(loss) == pytest.approx([factor] * 3 + [kept], abs=1e-6)


def test_one_factor_a_token() -> None:
    masked = MaskedImportance(high=3.0)(TRAINED, SAMPLING)
    assert masked.tolist() == pytest.approx([1.221403, 0.904837, 0], abs=1e-6)


def test_policies_that_agree_leave_the_base_method(tiny_model_dir: Path) -> None:
    """The sampler's log-probs are those of the student itself."""
    written = [
        replace(t, rollout=replace(t.rollout, logprobs=(float("nan"),) * len(t.rollout.token_ids)))
        for t in draw_trajectories()
    ]
    corrected = recipe_terms("grpo_masked")
    _, found = update_of(tiny_model_dir, corrected, written)
    neutral = recipe_terms("cispo", "terms.reinforce.loss.correction.cap=1")
    _, expected = update_of(tiny_model_dir, neutral, written)
    assert distance(found, expected) < 1e-5
    _, masked = update_of(tiny_model_dir, corrected, draw_trajectories())
    assert distance(masked, expected) > 1e-2


@pytest.mark.parametrize("tokens_per_batch", [1, 60])
def test_factors_do_not_depend_on_micro_batches(
    tiny_model_dir: Path, tokens_per_batch: int
) -> None:
    terms = recipe_terms("grpo_masked", "terms.reinforce.loss.of=mean")
    rollouts = draw_trajectories()
    whole = update_of(tiny_model_dir, terms, rollouts)
    split = update_of(tiny_model_dir, terms, rollouts, tokens_per_batch=tokens_per_batch)
    assert split[0] == pytest.approx(whole[0]) and distance(split[1], whole[1]) < 1e-5
