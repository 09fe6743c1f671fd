"""Losses across tokens: hand-computed values, and what must not turn into NaN."""

from __future__ import annotations

import math

import pytest
import torch

from opd.config import build
from opd.errors import RecipeError
from opd.objective.sequence_loss import SequencePolicyGradient, sequence_means, sequence_sums
from opd.recipe import Recipe
from tests.batches import batch_of
from tests.runs import tree


def test_sums_and_means_of_sequences_one_of_which_is_empty() -> None:
    tokens = batch_of([2, 0, 1])
    values = torch.tensor([1.0, 3.0, 5.0])
    assert sequence_sums(values, tokens).tolist() == [4.0, 0.0, 5.0]
    assert sequence_means(values, tokens).tolist() == [2.0, 0.0, 5.0]


def test_a_huge_sequence_ratio_stays_finite() -> None:
    logprob = torch.tensor([0.0, 0.0], requires_grad=True)
    tokens = batch_of([2], advantage=[-1.0], sampled_logprob=torch.tensor([-500.0, -500.0]))
    loss, _ = SequencePolicyGradient().sequences(logprob, tokens, {})
    assert loss.tolist() == pytest.approx([math.exp(20)] * 2, rel=1e-5)


def test_a_sequence_ratio_needs_sampled_rollouts(tmp_path) -> None:
    terms = {"reinforce": {"loss": "SequencePolicyGradient"}}
    changes = {"terms": terms, "source": "Demonstrations"}
    with pytest.raises(RecipeError, match="needs sampled rollouts"):
        build(Recipe, tree(tmp_path, tmp_path, **changes))
