"""What a right sibling says against wrong ones, in a mean of its own: arXiv 2606.11709."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.loss import PolicyGradient
from opd.objective.token_credit import Residual
from tests.batches import batch_of, scores_of, seen_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of

VIEWS = ("right", "wrong", "wrong_too")


def residual() -> Residual:
    loss = recipe_terms("rlcsd")["contrast"].loss
    assert isinstance(loss, PolicyGradient)
    (credit,) = loss.token_credit
    assert isinstance(credit, Residual)
    return credit


def shaped(advantage: float, right: float, *wrong: float) -> float:
    """In float64: over a temperature of 0.02, rounding counts fifty times."""
    logprobs = torch.tensor([[right], *([p] for p in wrong)], dtype=torch.float64)
    seen = {
        view: replace(seen_of([0.0]), logprob=logprob)
        for view, logprob in zip(VIEWS, logprobs, strict=True)
    }
    own = torch.tensor([advantage], dtype=torch.float64)
    return residual()(own, torch.zeros_like(own), batch_of([1]), seen).item()


def test_the_gap_is_to_the_mean_probability_of_wrong_siblings() -> None:
    credit = residual()
    sides = {"right": 0.7, "wrong": 0.4, "wrong_too": 0.2}
    linear = replace(credit, scale=1e4, temperature=1e4)
    seen = {view: seen_of([math.log(p)]) for view, p in sides.items()}
    found = linear(torch.tensor([1.0]), torch.zeros(1), batch_of([1]), seen).item()
    assert found == pytest.approx(1.847297860, abs=1e-6)
    of_logs = math.log(0.7) - (math.log(0.4) + math.log(0.2)) / 2
    assert of_logs == pytest.approx(0.906189378, abs=1e-9)
    assert found - 1 < of_logs - 0.05


@pytest.mark.parametrize(("advantage", "found"), [(0.3, 0.8), (-0.3, 0.0), (-0.8, -0.3), (0, 0)])
def test_the_verifiers_sign_is_kept(advantage: float, found: float) -> None:
    right, *wrong = (math.log(p) for p in (0.7, 0.4, 0.2))
    assert shaped(advantage, right, *wrong) == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize(
    ("gap", "moved", "selected"), [(0.00099950, 0.024966727, 1), (0.00049988, 0.012494274, 0)]
)
def test_small_gaps_stay_with_the_other_tokens(gap: float, moved: float, selected: int) -> None:
    assert shaped(0.3, gap - 1, -1.0, -1.0) - 0.3 == pytest.approx(moved, abs=1e-6)
    terms = recipe_terms("rlcsd")
    scores = {view: scores_of(1, logprob=[gap * (view == "right")]) for view in VIEWS}
    assert terms["contrast"].weight(batch_of([1]), scores).tolist() == [selected]
    assert terms["reinforce"].weight(batch_of([1]), scores).tolist() == [1 - selected]


def test_two_means_and_not_one() -> None:
    """Ratio 1, advantage 0.3, the last of four tokens is selected."""
    terms, batch = recipe_terms("rlcsd"), batch_of([4], advantage=[0.3])
    gaps = {"right": [-1.0, -1.0, -1.0, 0.0], "wrong": [-1.0] * 4, "wrong_too": [-1.0] * 4}
    scores = {view: scores_of(4, logprob=logprob) for view, logprob in gaps.items()}
    total, selected = 0.0, []
    for term in terms.values():
        assert isinstance(term.loss, PolicyGradient)
        seen = {view: scores[view].rows(torch.arange(4)) for view in term.loss.views}
        losses, _ = term.loss.tokens(torch.zeros(4), batch, seen)
        weight = term.weight(batch, scores)
        total += (term.numerator(losses, weight, batch, 8) / term.mass(weight, batch, 8)).item()
        selected += [losses[weight > 0]]
    assert total == pytest.approx(-1.1, abs=1e-6)
    assert torch.cat(selected).mean().item() == pytest.approx(-0.425, abs=1e-6)


def test_groups_without_both_leave_the_base_method(tiny_model_dir: Path) -> None:
    rollouts = draw_trajectories(*VIEWS)
    terms = recipe_terms("rlcsd")
    _, expected = update_of(tiny_model_dir, recipe_terms("grpo"), rollouts)
    for kept in (("right",), ("wrong", "wrong_too")):
        blind = [
            replace(t, views={k: v for k, v in t.views.items() if k in kept}) for t in rollouts
        ]
        assert distance(update_of(tiny_model_dir, terms, blind)[1], expected) < 1e-6
    assert distance(update_of(tiny_model_dir, terms, rollouts)[1], expected) > 1e-3
