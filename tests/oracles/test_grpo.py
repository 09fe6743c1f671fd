"""arXiv 2402.03300: advantages of a group, the clip, the mean over responses, and what is left
without any of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opd.config import build, load_recipe
from opd.objective.credit import Credit
from opd.objective.loss import Observed, PolicyGradient, TokenLoss
from opd.objective.term import Term
from opd.recipe import Recipe
from opd.types import Seen, Tokens
from tests.batches import batch_of
from tests.students import distance, drawn_by, recipe_terms, update_of

LOSS = "terms.reinforce.loss"


def credit(*overrides: str) -> Credit:
    return build(Recipe, load_recipe("grpo", overrides)).credit


@pytest.mark.parametrize(
    ("change", "rewards", "advantages"),
    [
        ("credit.ddof=1", (1, 0, 0, 1), (0.865875, -0.865875, -0.865875, 0.865875)),
        ("credit.ddof=1", (1, 0, 0, 0), (1.4997, -0.4999, -0.4999, -0.4999)),
        ("credit.ddof=0", (1, 0, 0, 0), (1.7316509, -0.5772170, -0.5772170, -0.5772170)),
        ("credit.scale=false", (1, 0, 0, 0), (0.75, -0.25, -0.25, -0.25)),
        ("credit.ddof=1", (1, 1, 1, 1), (0, 0, 0, 0)),
    ],
)
def test_advantages(change: str, rewards: tuple[float, ...], advantages: tuple[float, ...]) -> None:
    """(r - mean) / (deviation + 1e-4), the deviation .577350 of two successes, .5 of one, .433013
    of one in the population."""
    assert credit(change).advantages(rewards) == pytest.approx(advantages, abs=1e-6)


def losses(log_ratios: tuple[float, ...], advantage: float, *overrides: str) -> Tensor:
    """Of the tokens of one response, in float64."""
    loss = recipe_terms("grpo", *overrides)["reinforce"].loss
    assert isinstance(loss, PolicyGradient)
    sampled = torch.full((len(log_ratios),), -1.0, dtype=torch.float64)
    batch = batch_of([len(log_ratios)], advantage=[advantage], sampled_logprob=sampled)
    logprob = sampled + torch.tensor(log_ratios, dtype=torch.float64)
    return loss.tokens(logprob, batch, {})[0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "bounded", "wider"),
    [
        (1.5, 1.0, -1.2, -1.28),
        (1.5, -1.0, 1.5, 1.5),
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.8),
    ],
)
def test_the_clip(ratio: float, advantage: float, bounded: float, wider: float) -> None:
    """At 0.2 on both sides as there, and as the recipe has it."""
    ratios = (math.log(ratio),)
    even = losses(ratios, advantage, f"{LOSS}.clip_high=0.2")
    assert even.item() == pytest.approx(bounded, abs=1e-6)
    assert losses(ratios, advantage).item() == pytest.approx(wider, abs=1e-6)


def test_every_token_has_a_ratio_of_its_own() -> None:
    """Their product is the response's."""
    found = losses((0.2, -0.1, 0.3), -1.0)
    assert found.tolist() == pytest.approx([math.exp(x) for x in (0.2, -0.1, 0.3)], abs=1e-9)
    assert found.prod().item() == pytest.approx(1.4918247, abs=1e-6)


@pytest.mark.parametrize(("average", "mean"), [("sequence", 0.75), ("token", 0.6)])
def test_responses_that_count_alike_and_tokens_that_do(average: str, mean: float) -> None:
    """The paper's mean and the recipe's."""
    (term,) = recipe_terms("grpo", f"terms.reinforce.average={average}").values()
    assert recipe_terms("grpo")["reinforce"].average == "token"
    batch = batch_of([2, 8])
    weight = term.weight(batch, {})
    values = weight.new_tensor([1.0] * 2 + [0.5] * 8)
    total = term.numerator(values, weight, batch, 10) / term.mass(weight, batch, 10)
    assert total.item() == pytest.approx(mean, abs=1e-6)


@dataclass(frozen=True)
class Reinforced(TokenLoss):
    """-A log s."""

    @property
    def views(self) -> tuple[str, ...]:
        return ()

    def tokens(
        self, logprob: Tensor, batch: Tokens, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        return -batch.advantage[batch.sequence] * logprob, {}


def test_unscaled_and_unclipped_it_is_the_gradient_of_centred_rewards(tiny_model_dir: Path) -> None:
    """On tokens that the student has just drawn, and with bounds that hold nothing."""
    rollouts = drawn_by(tiny_model_dir)
    rewards = [each.verdict.reward for each in rollouts]
    mean = sum(rewards) / len(rewards)
    plain = {"reinforce": Term(loss=Reinforced())}
    centred = [
        replace(each, advantage=reward - mean)
        for each, reward in zip(rollouts, rewards, strict=True)
    ]
    _, expected = update_of(tiny_model_dir, plain, centred)

    def found(*overrides: str) -> dict[str, Tensor]:
        advantages = credit(*overrides).advantages(rewards)
        shaped = [replace(t, advantage=a) for t, a in zip(rollouts, advantages, strict=True)]
        free = (f"{LOSS}.clip_low=1", f"{LOSS}.clip_high=.inf")
        return update_of(tiny_model_dir, recipe_terms("grpo", *free), shaped)[1]

    assert distance(found("credit.scale=false"), expected) < 1e-5
    assert distance(found("credit.scale=true"), expected) > 0.1
