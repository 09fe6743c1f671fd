"""Spans of several tokens on the teacher's side."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from opd.head import Head
from opd.learner.spans import span_losses
from opd.objective.span_loss import SortedDistance
from opd.teacher.alignment import Aligned, lay_spans, with_spans
from opd.types import Scores


@pytest.mark.parametrize(
    ("row", "difference"),
    [
        # .5 (.9, .1), p(1) behind p(0), against .2 (.2, .8), sorted.
        ("last", abs(0.45 - 0.16) + abs(0.05 - 0.04)),
        # .9 (.5, .5), p(0) before p(0), against .32 (.5, .5).
        ("first", 2 * abs(0.45 - 0.16)),
    ],
)
def test_a_teachers_span_is_as_likely_as_its_tokens_together(
    row: Literal["last", "first"], difference: float
) -> None:
    """Its tokens 0, 1 and 1 with .5, .4 and .8."""
    blank = Scores(
        hidden=torch.zeros(2, 2),
        head=Head(torch.eye(2)),
        present=torch.zeros(2, dtype=torch.bool),
        target_ids=torch.zeros(2, dtype=torch.long),
        temperature=1.0,
    )
    scores = with_spans(blank, torch.zeros(0, 2, dtype=torch.long), row)
    theirs = torch.tensor([[0.5, 0.5], [0.6, 0.4], [0.2, 0.8]]).log()
    lay_spans(scores, 0, theirs, Aligned((0, 1, 1), ((range(0, 2), range(0, 3)),)))
    assert scores.present.tolist() == [False, True]
    assert scores.spans is not None and scores.spans.length.tolist() == [0, 2]
    assert scores.logprob.exp()[1].item() == pytest.approx(0.5 * 0.4 * 0.8)
    mine = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    loss = span_losses(
        *(SortedDistance(view="plain"), mine, Head(torch.eye(2)), torch.tensor([1, 0])),
        *(scores, torch.tensor([1])),
        temperature=1.0,
    )
    assert loss.item() == pytest.approx(difference, abs=1e-6)
