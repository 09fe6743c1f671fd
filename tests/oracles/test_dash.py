"""Numbers of arXiv 2608.06243, from its own recursion and from the factors that equal it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from opd.objective.sequence_loss import PassedBack
from opd.objective.term import Term
from opd.privileged import Trajectory
from tests.batches import batch_of
from tests.students import distance, draw_trajectories, recipe_terms, update_of

DIVERGENCES = (0.1, 0.4, 0.2)


def recipe_term() -> tuple[Term, PassedBack]:
    term = recipe_terms("dash")["distil"]
    assert isinstance(term.loss, PassedBack) and term.loss.sharpness == 5.0
    return term, term.loss


def test_factors_and_their_mean_over_the_response() -> None:
    term, loss = recipe_term()
    batch, values = batch_of([3]), torch.tensor(DIVERGENCES, requires_grad=True)
    per_token, observed = loss.sequences(values, batch, {})
    factors = [1, 1.660756369, 1.503110724]
    assert observed["factor"].tolist() == pytest.approx(factors, abs=1e-6)
    weight = torch.ones(3)
    mean = term.numerator(per_token, weight, batch, 8) / term.mass(weight, batch, 8)
    assert mean.item() == pytest.approx(0.354974897, abs=1e-6)
    (gradient,) = torch.autograd.grad(mean, values)
    assert gradient.tolist() == pytest.approx([factor / 3 for factor in factors], abs=1e-6)


def test_how_much_each_token_passes_back() -> None:
    """What the next one's factor exceeds 1 by, over its own; behind the third stands a token of the
    mean, so that the mean stays."""
    _, loss = recipe_term()
    values = torch.tensor([*DIVERGENCES, sum(DIVERGENCES) / 3], dtype=torch.float64)
    factor = loss.sequences(values, batch_of([4]), {})[1]["factor"].tolist()
    shares = [(later - 1) / own for own, later in pairwise(factor)]
    assert shares == pytest.approx((0.660756369, 0.302940716, 0.541570483), abs=1e-8)


def test_no_sharpness_is_plain_distillation_but_far_ones_are_of_what_is_hard() -> None:
    """In the limit a response above the mean of the update passes nothing back, however long, and
    one below it everything; at 0 a half is passed back everywhere."""
    _, loss = recipe_term()
    hard = [0.6 + 0.01 * (token % 7) for token in range(20)]
    values, batch = torch.tensor([*hard, 0.1, 0.2, 0.1]), batch_of([20, 3])
    per_token, observed = replace(loss, sharpness=1e4).sequences(values, batch, {})
    assert per_token[:20].tolist() == pytest.approx(hard, abs=1e-6)
    assert observed["factor"].tolist() == [*[1.0] * 20, 1.0, 2.0, 3.0]
    _, even = replace(loss, sharpness=0.0).sequences(values, batch, {})
    halves = [2 - 2.0**-token for token in range(20)]
    assert even["factor"].tolist() == pytest.approx([*halves, 1, 1.5, 1.75], abs=1e-6)


def test_the_papers_recursion_has_the_same_sum() -> None:
    """A_t = d_t + l_t A_(t+1), summed over t."""
    shares = (0.660756369, 0.302940716)
    last = DIVERGENCES[2]
    middle = DIVERGENCES[1] + shares[1] * last
    first = DIVERGENCES[0] + shares[0] * middle
    _, loss = recipe_term()
    per_token, _ = loss.sequences(torch.tensor(DIVERGENCES), batch_of([3]), {})
    assert per_token.sum().item() == pytest.approx(first + middle + last, abs=1e-6)


def test_the_mean_is_over_the_update() -> None:
    _, loss = recipe_term()
    _, alone = loss.sequences(torch.tensor([0.1, 0.4]), batch_of([2]), {})
    values = torch.tensor([0.1, 0.4, 5.0, 5.0])
    _, beside = loss.sequences(values, batch_of([2, 2]), {})
    assert beside["factor"][0] == 1 and beside["factor"][2] == 1
    assert beside["factor"][1].item() > 1.99 > alone["factor"][1].item()


def test_responses_of_one_token_are_plainly_distilled(tiny_model_dir: Path) -> None:
    """Nothing follows that could be passed back."""
    term, loss = recipe_term()
    plain = Term(loss=loss.loss, average="sequence")
    short = [cut(trajectory) for trajectory in draw_trajectories()]
    found = [update_of(tiny_model_dir, {"distil": each}, short) for each in (term, plain)]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert distance(found[0][1], found[1][1]) < 1e-5


def cut(trajectory: Trajectory) -> Trajectory:
    """The same with the first token of the response only."""
    rollout = trajectory.rollout
    first = replace(rollout, token_ids=rollout.token_ids[:1], logprobs=rollout.logprobs[:1])
    return replace(trajectory, rollout=first)
