"""Our clipped surrogate, averages and advantages against TRL's own code.

`GRPOTrainer._compute_loss` runs as it is; only the model's forward pass is given as numbers.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from torch import Tensor

from opd.objective.correction import TruncatedImportance
from opd.objective.credit import GroupMean
from opd.objective.loss import PolicyGradient
from opd.objective.term import Term
from tests.batches import batch_of

pytest.importorskip("trl")

from accelerate import Accelerator
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import nanstd

LENGTHS, LONGEST, BUDGET = (2, 5, 3), 5, 9
ADVANTAGE = (1.3, -0.7, 0.4)


def theirs(
    loss_type: str, logprob: Tensor, before: Tensor, mask: Tensor, importance: Tensor | None
) -> Tensor:
    """The loss of `_compute_loss`, given `[S, T]` log-probs in place of a forward pass."""
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprob, logprob.detach(), None),
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        accelerator=Accelerator(cpu=True),
        args=SimpleNamespace(delta=None, steps_per_generation=1),
        aux_loss_enabled=False,
        beta=0.0,
        current_gradient_accumulation_steps=1,
        epsilon_high=0.28,
        epsilon_low=0.2,
        importance_sampling_level="token",
        loss_type=loss_type,
        max_completion_length=BUDGET,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=importance is not None,
        vllm_importance_sampling_correction=True,
    )
    nothing = torch.zeros(len(LENGTHS), 0, dtype=torch.long)
    inputs = {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": torch.tensor(ADVANTAGE),
        "old_per_token_logps": before,
        "num_items_in_batch": mask.sum(),
        "importance_sampling_ratio": importance,
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)  # pyright: ignore


@pytest.mark.parametrize(
    ("loss_type", "average"),
    [("dapo", "token"), ("bnpo", "token"), ("grpo", "sequence"), ("dr_grpo", "budget")],
)
@pytest.mark.parametrize("corrected", [False, True])
def test_clipped_surrogate_and_its_averages(
    loss_type: str, average: Literal["token", "sequence", "budget"], corrected: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(LONGEST) < torch.tensor(LENGTHS).unsqueeze(1)).long()
    logprob = -torch.rand(mask.shape, generator=generator).requires_grad_()
    sampled = logprob.detach() + 0.4 * torch.randn(mask.shape, generator=generator)
    importance = (logprob.detach() - sampled).exp().clamp(max=1.2) if corrected else None
    before = logprob.detach() if corrected else sampled
    reference = theirs(loss_type, logprob, before, mask, importance)

    kept = mask.bool()
    batch = batch_of(LENGTHS, advantage=ADVANTAGE, sampled_logprob=sampled[kept])
    correction = TruncatedImportance(cap=1.2) if corrected else None
    loss = PolicyGradient(clip_high=0.28, correction=correction)
    term = Term(loss=loss, average=average)
    weight = term.weight(batch, {})
    per_token, _ = loss.tokens(logprob[kept], batch, {})
    mine = term.numerator(per_token, weight, batch, BUDGET) / term.mass(weight, batch, BUDGET)

    torch.testing.assert_close(mine, reference, atol=1e-6, rtol=1e-6)
    (gradient,) = torch.autograd.grad(mine, logprob)
    (expected,) = torch.autograd.grad(reference, logprob)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rewards", [(1.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0), (0.2, 0.9, 0.4)])
def test_group_deviation(rewards: tuple[float, ...]) -> None:
    """trl.trainer.utils.nanstd in the advantage that GRPOTrainer writes out in place."""
    table = torch.tensor(rewards, dtype=torch.float64)
    reference = (table - table.nanmean()) / (nanstd(table) + 1e-4)
    assert GroupMean().advantages(rewards) == pytest.approx(reference.tolist(), abs=1e-6)
