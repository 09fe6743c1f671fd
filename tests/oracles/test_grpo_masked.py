"""Factors of whole responses against another sampler, as TRL and verl have them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opd.config import load_recipe
from opd.objective.correction import Correction, MaskedImportance, TruncatedImportance
from opd.objective.loss import PolicyGradient, TokenCorrected
from opd.objective.sequence_loss import Corrected
from opd.types import Observed, Seen, Tokens
from tests.batches import batch_of
from tests.runs import run, tree
from tests.students import distance, draw_trajectories, recipe_terms, update_of

TRAINED, SAMPLING = torch.tensor([-1.0, -0.5, -2.0]), torch.tensor([-1.2, -0.4, -3.5])


def pulls(loss: Corrected | TokenCorrected) -> list[float]:
    """What pulls at the three tokens of a response of advantage 1, and at one as it was drawn."""
    leaf = torch.cat([TRAINED, torch.tensor([-1.0])]).requires_grad_()
    sampled = torch.cat([SAMPLING, torch.tensor([-1.0])])
    batch = batch_of([3, 1], advantage=[1.0, 1.0], sampled_logprob=sampled)
    compute = loss.sequences if isinstance(loss, Corrected) else loss.tokens
    value, observed = compute(leaf, batch, {})
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


@pytest.mark.parametrize(
    ("correction", "factors"),
    [
        (TruncatedImportance(cap=2.0), (1.221403, 0.904837, 2.0)),
        (MaskedImportance(high=3.0), (1.221403, 0.904837, 0.0)),
    ],
)
def test_one_factor_a_token(correction: Correction, factors: tuple[float, ...]) -> None:
    loss = TokenCorrected(loss=PolicyGradient(), correction=correction)
    assert pulls(loss) == pytest.approx([*factors, 1.0], abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "slope"),
    [(1.5, 1.0, -1.28, 0.0), (1.5, -1.0, 1.5, 1.5), (0.5, 1.0, -0.5, -0.5), (0.5, -1.0, 0.8, 0.0)],
)
def test_three_policies(ratio: float, advantage: float, surrogate: float, slope: float) -> None:
    """The factor is of the policy before the step over the sampling one, the clip of the trained
    policy over the one before."""
    logprob = (TRAINED + math.log(ratio)).requires_grad_()
    batch = batch_of(
        [3], advantage=[advantage], sampled_logprob=SAMPLING, earlier_logprob=TRAINED.clone()
    )
    loss = recipe_terms("srpo")["reinforce"].loss
    assert isinstance(loss, TokenCorrected)
    value, _ = loss.tokens(logprob, batch, {})
    value.sum().backward()
    assert logprob.grad is not None
    factors = torch.tensor([1.221403, 0.904837, 2.0])
    assert value.tolist() == pytest.approx((surrogate * factors).tolist(), abs=1e-5)
    assert logprob.grad.tolist() == pytest.approx((slope * factors).tolist(), abs=1e-5)


def test_a_sampler_that_is_the_policy_before_leaves_the_base_method(tiny_model_dir: Path) -> None:
    """Their ratio to the trained policy is clipped as it was."""
    rollouts = [
        replace(t, earlier_logprobs={"student": t.rollout.logprobs}) for t in draw_trajectories()
    ]
    _, found = update_of(tiny_model_dir, recipe_terms("grpo_masked"), rollouts)
    _, expected = update_of(tiny_model_dir, recipe_terms("grpo"), rollouts)
    assert distance(found, expected) < 1e-6


def test_the_policy_before_outlasts_the_first_update(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One engine: it is the sampling policy, in every update, and the trained one in the first."""
    seen: list[tuple[Tensor, Tokens]] = []
    plain = Corrected.sequences

    def watched(
        self: Corrected, values: Tensor, tokens: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        seen.append((values.detach(), tokens))
        return plain(self, values, tokens, teachers)

    monkeypatch.setattr(Corrected, "sequences", watched)
    changes = {"updates_per_step": 2, "optimizer": {"learning_rate": 1e-2}, "steps": 1}
    terms = tree(tiny_model_dir, tmp_path)["terms"] | load_recipe("grpo_masked")["terms"]
    run(tiny_model_dir, tmp_path / "run", terms=terms, **changes)
    assert len(seen) == 2
    for _, tokens in seen:
        drawn = tokens.sampled_logprob
        torch.testing.assert_close(tokens.earlier_logprob, drawn, atol=1e-4, rtol=0)
    moved = [(values - tokens.earlier_logprob).abs().max().item() for values, tokens in seen]
    assert moved[0] < 1e-4 and moved[1] > 1e-2


def test_written_responses_are_left_as_they_are(tiny_model_dir: Path) -> None:
    """They have no sampler to differ from."""
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
    # All of one sign, so that the loss is not what rounding leaves of summands that cancel.
    rollouts = [replace(each, advantage=abs(each.advantage)) for each in draw_trajectories()]
    whole = update_of(tiny_model_dir, terms, rollouts)
    split = update_of(tiny_model_dir, terms, rollouts, tokens_per_batch=tokens_per_batch)
    assert split[0] == pytest.approx(whole[0]) and distance(split[1], whole[1]) < 1e-5
