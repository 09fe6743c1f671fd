"""arXiv 2503.07067: each kind of text has its divergence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.objective.weight import Origin
from tests.batches import batch_of
from tests.rows import A_STUDENT, A_TEACHER, pulled
from tests.students import distance, draw_trajectories, recipe_terms, update_of


def test_both_divergences() -> None:
    """(2 - beta) SKL + beta SRKL with beta 1, on one row of each kind."""
    terms = recipe_terms("distillm2")
    found = [
        pulled(terms[name].loss, A_STUDENT, solution=A_TEACHER)[0]  # pyright: ignore
        for name in ("written", "sampled")
    ]
    assert found == pytest.approx([0.0820464, 0.0900026], abs=1e-6)
    assert sum(found) == pytest.approx(0.1720490, abs=1e-6)


def test_written_and_sampled_tokens_come_apart() -> None:
    batch = batch_of([2, 1], sampled_logprob=torch.tensor([-1.0, -2.0, float("nan")]))
    assert Origin(when="sampled")(batch, {}).tolist() == [1, 1, 0]
    assert Origin(when="written")(batch, {}).tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", ["written", "sampled"])
def test_text_of_one_kind_is_left_to_one_term(tiny_model_dir: Path, kind: str) -> None:
    nan = float("nan")
    trajectories = [
        replace(
            each,
            rollout=replace(each.rollout, logprobs=(nan,) * len(each.rollout.token_ids)),
        )
        if kind == "written"
        else each
        for each in draw_trajectories()
    ]
    terms = recipe_terms("distillm2")
    _, found = update_of(tiny_model_dir, terms, trajectories)
    alone = replace(terms[kind], weights=())
    _, want = update_of(tiny_model_dir, {kind: alone}, trajectories)
    assert distance(found, want) < 1e-6
