"""Numbers of arXiv 2605.06597's switches, and all of them off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opd.objective.clip import clipped_rows
from opd.objective.hidden_loss import HiddenSquares
from opd.objective.loss import Contrast, Distill
from opd.objective.schedule import Constant
from opd.objective.term import Term
from opd.objective.weight import Agreement, SequenceAgreement
from opd.teacher.weights import EMA
from opd.types import Seen
from tests.batches import batch_of, seen_of
from tests.students import distance, draw_trajectories, open_student, recipe_terms, update_of

THOUGHT = ([-1.0, -2.0], [-1.5, -2.0], [-0.5, -2.0])
"""What three contexts think of two tokens."""


def agreement(**changes: float) -> Tensor:
    """The recipe's weights of the two tokens."""
    weight = recipe_terms("unisd")["distil"].weights[0]
    assert isinstance(weight, Agreement)
    seen = {view: seen_of(row) for view, row in zip(weight.among, THOUGHT, strict=True)}
    return replace(weight, **changes).over_update(batch_of([2]), seen)


def test_contexts_that_disagree_weigh_less() -> None:
    assert agreement().tolist() == pytest.approx([0.998948, 1.0], abs=1e-6)
    assert agreement(strength=1.0).tolist() == pytest.approx([0.487179, 1.0], abs=1e-6)
    assert agreement(strength=0.0).tolist() == [1.0, 1.0]
    assert agreement(strength=1e9).tolist() == pytest.approx([0.01, 1.0])


def test_the_variance_is_measured_by_a_high_quantile_of_the_update() -> None:
    """A variance of .25 by .2375, or at the highest by itself."""
    distances = 1 / agreement(strength=1.0) - 1
    assert distances.tolist() == pytest.approx([0.25 / 0.2375, 0.0], abs=1e-6)
    assert agreement(strength=1.0, quantile=1.0).tolist() == pytest.approx([0.5, 1.0], abs=1e-6)


def mean(lengths: list[int], losses: list[float], weights: list[float]) -> float:
    """What the recipe's first term makes of losses and weights, in responses of these lengths."""
    term, batch, weight = recipe_terms("unisd")["distil"], batch_of(lengths), torch.tensor(weights)
    value = term.numerator(torch.tensor(losses), weight, batch, 8) / term.mass(weight, batch, 8)
    return value.item()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((0.487179487, 1.0), 0.165517), ((0.5, 0.5), 0.2), ((1.0, 1.0), 0.2), ((0.25, 0.25), 0.1)],
)
def test_a_response_is_a_weighted_mean(weights: tuple[float, ...], expected: float) -> None:
    """A weight that is the same for all tokens cancels, unless less than 1 is left in all."""
    assert mean([2], [0.3, 0.1], list(weights)) == pytest.approx(expected, abs=1e-6)


def test_responses_on_which_contexts_disagree_count_like_any_other() -> None:
    assert mean([2, 2], [1.0, 1.0, 3.0, 3.0], [1.0, 1.0, 0.5, 0.5]) == pytest.approx(2.0)
    assert mean([1, 3], [1.0, 3.0, 3.0, 3.0], [1.0, 0.5, 0.5, 0.5]) == pytest.approx(2.0)
    # A token that does not count is no part of its response.
    assert mean([2, 2], [1.0, 9.0, 3.0, 3.0], [1.0, 0.0, 0.5, 0.5]) == pytest.approx(2.0)


@pytest.mark.parametrize(("margin", "value"), [(0.5, 0.4), (0.1, 0.0)])
def test_the_hinge(margin: float, value: float) -> None:
    loss = recipe_terms("unisd")["keep_away"].loss
    assert isinstance(loss, Contrast) and loss.margin == 0.1
    seen = {"solution": seen_of([-0.8]), "failure": seen_of([-1.3])}
    found, _ = replace(loss, margin=margin).tokens(torch.tensor([-1.0]), batch_of([1]), seen)
    assert found.item() == pytest.approx(value, abs=1e-6)


def test_feature_matching_and_the_clip_of_whole_tokens() -> None:
    loss = recipe_terms("unisd")["feature"].loss
    assert isinstance(loss, HiddenSquares)
    hidden = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    squares, _ = loss.states(hidden, batch_of([1]), {"solution": torch.ones(1, 4)})
    assert squares.item() == pytest.approx(3.5)
    distil = recipe_terms("unisd_clipped")["distil"].loss
    assert isinstance(distil, Distill)
    capped, _ = clipped_rows(torch.tensor([0.2, 12.0]), distil.clip, distil.clip_at)
    assert capped.mean().item() == pytest.approx(5.1)


def test_the_teacher_moves_every_ten_steps(tiny_model_dir: Path) -> None:
    """From 1 towards 2 it gets to 1.02."""
    learner, teacher = open_student(tiny_model_dir), EMA(decay=0.98, every=10)
    teacher.setup(learner)
    with torch.no_grad():
        for theirs, mine in zip(
            learner.model.parameters(), teacher.average.parameters(), strict=True
        ):
            theirs.fill_(2.0)
            mine.fill_(1.0)
    seen = []
    for _ in range(10):
        teacher.follow(learner)
        seen.append(next(iter(teacher.average.parameters())).flatten()[0].item())
    assert seen == pytest.approx([1.0] * 9 + [1.02])


@pytest.mark.parametrize("recipe", ["unisd", "unisd_sequence"])
def test_contexts_that_agree_and_no_extras_are_plain_distillation(
    tiny_model_dir: Path, recipe: str
) -> None:
    terms = recipe_terms(recipe)
    distil = terms["distil"]
    weight = distil.weights[0]
    assert isinstance(weight, Agreement | SequenceAgreement)
    views = ("first", "second", "third", "failure")
    trajectories = [
        replace(t, views={**t.views, **dict.fromkeys(views, (7, 8, 9))})
        for t in draw_trajectories()
    ]
    off = {name: replace(term, coefficient=Constant(value=0.0)) for name, term in terms.items()}
    alike = {**off, "distil": replace(distil, weights=(replace(weight, strength=1.0),))}
    plain = {"distil": Term(loss=distil.loss, average="sequence")}
    found = [update_of(tiny_model_dir, each, trajectories) for each in (alike, plain, terms)]
    # Equal contexts differ by rounding.
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert distance(found[0][1], found[1][1]) < 1e-3 < distance(found[2][1], found[1][1])


def test_a_view_that_is_absent_leaves_the_others_to_agree() -> None:
    weight = Agreement(among=("first", "second", "third"), strength=1.0)
    here = torch.ones(2, dtype=torch.bool)
    seen = {
        view: Seen(torch.tensor(row), torch.zeros(2), here if n else ~here)
        for n, (view, row) in enumerate(zip(weight.among, THOUGHT, strict=True))
    }
    # The variance of two values 1 apart, over 0.95 of itself.
    expected = 1 / (1 + 0.5 / (0.95 * 0.5))
    assert weight.over_update(batch_of([2]), seen).tolist() == pytest.approx([expected, 1.0])


def agreement_of_responses(lengths: list[int], *thought: list[float], **changes: float) -> Tensor:
    """The weights that `unisd_sequence` has for what three contexts think of each token."""
    weight = recipe_terms("unisd_sequence")["distil"].weights[0]
    assert isinstance(weight, SequenceAgreement) and weight.strength == 1.0
    seen = {view: seen_of(row) for view, row in zip(weight.among, thought, strict=True)}
    return replace(weight, **changes).over_update(batch_of(lengths), seen)


def test_a_response_on_which_contexts_disagree_weighs_less() -> None:
    """Means of -1.5, -1.75 and -1.25, of variance 1/24, and one that all three share."""
    thought = ([-1.0, -2.0, -2.0], [-1.5, -2.0, -2.0], [-0.5, -2.0, -2.0])
    found = agreement_of_responses([2, 1], *thought)
    assert found.tolist() == pytest.approx([0.959189, 0.959189, 1.0], abs=1e-6)
    distance = -agreement_of_responses([2, 1], *thought).log()
    assert distance.tolist() == pytest.approx([0.041667, 0.041667, 0.0], abs=1e-6)
    assert agreement_of_responses([2, 1], *thought, strength=0.0).tolist() == [1.0] * 3
    floor = agreement_of_responses([1], [-1.0], [-9.0], [-50.0])
    assert floor.tolist() == pytest.approx([1e-6])


def test_one_weight_a_response_counts_beside_others_and_cancels_in_its_own_mean() -> None:
    losses, weights = torch.tensor([0.3, 0.1, 0.5]), torch.tensor([0.5, 0.5, 1.0])
    batch, terms = batch_of([2, 1]), recipe_terms("unisd_sequence")

    def value(term: Term) -> float:
        found = term.numerator(losses, weights, batch, 8) / term.mass(weights, batch, 8)
        return found.item()

    # Half of the first response's 0.2, and 0.5.
    assert value(terms["distil"]) == pytest.approx((0.1 + 0.5) / 2)
    assert value(recipe_terms("unisd")["distil"]) == pytest.approx((0.2 + 0.5) / 2)


def test_a_response_that_one_context_sees_keeps_its_weight() -> None:
    weight = SequenceAgreement(among=("first", "second"))
    here = torch.ones(2, dtype=torch.bool)
    seen = {
        "first": Seen(torch.tensor([-1.0, -2.0]), torch.zeros(2), here),
        "second": Seen(torch.tensor([-9.0, -4.0]), torch.zeros(2), torch.tensor([False, True])),
    }
    # -2 and -4 lie 1 from their mean.
    expected = [1.0, torch.tensor(-1.0).exp().item()]
    assert weight.over_update(batch_of([1, 1]), seen).tolist() == pytest.approx(expected)
