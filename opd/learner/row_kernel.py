"""Divergence, its gradient and the taken tokens' log-probs, row by row, on a GPU. Ours.

Legend: `n` rows, `V` vocabulary, `z_s` and `z_t` raw logits of student and teacher, `p` and `q`
their probabilities at the temperature. Needs Triton, which is imported at the first call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from opd.learner.row_pairs import Comparer, RowPairs
from opd.objective.divergence import (
    JSD,
    Divergence,
    ForwardKL,
    HeldSkewReverseKL,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)

if TYPE_CHECKING:
    from types import ModuleType

BLOCK = 1024
"""Vocabulary entries that a program holds at once."""
WARPS = 4
STAGES = 3
"""Blocks on their way from memory at once."""


@dataclass(frozen=True)
class Statistics:
    """What one pass over the rows found, each `[n]` float32; the first five in nats."""

    divergence: Tensor
    logprob: Tensor
    """log p of the taken tokens."""
    entropy: Tensor
    teacher_logprob: Tensor
    teacher_entropy: Tensor
    normaliser: Tensor
    """log of the sum of e^(z_s / T)."""
    shift: Tensor
    """The teacher's normaliser less the student's."""
    pull_total: Tensor
    """The pulls of a row summed: what its gradient subtracts in the direction of p."""


@dataclass(frozen=True)
class Form:
    """How a divergence looks to the kernel."""

    terms: str
    """Its function in `row_programs`."""
    share: Callable[[Any], float] = lambda _: 0.0
    """Its parameter."""
    kl: str = ""
    """Which of the sums that need no normaliser gives its value."""


FORMS: dict[type[Divergence], Form] = {
    ForwardKL: Form("forward_kl", kl="forward"),
    ReverseKL: Form("reverse_kl", kl="reverse"),
    JSD: Form("jsd", share=lambda divergence: divergence.teacher_weight),
    SkewKL: Form("skew_kl", share=lambda divergence: divergence.skew),
    SkewReverseKL: Form("skew_reverse_kl", share=lambda divergence: divergence.skew),
    HeldSkewReverseKL: Form("held_skew_reverse_kl", share=lambda divergence: divergence.skew),
    TotalVariation: Form("total_variation"),
}


@cache
def installed() -> bool:
    """Whether Triton can be imported."""
    return find_spec("triton") is not None


def supported(divergence: Divergence) -> bool:
    """Whether the kernel knows `divergence` and can run here; a subclass may mean something else,
    so only the very classes of `opd.objective.divergence` count."""
    return type(divergence) in FORMS and installed()


def programs() -> ModuleType:
    """The Triton programs."""
    from opd.learner import row_programs

    return row_programs


def measure(pairs: RowPairs) -> Statistics:
    """Compare the rows of both sides, which may be strided views; their columns may not.

    The teacher's difference from the student never meets the rounding of its logits: log q = log p
    + d/T - log1p(<p, expm1(d/T)>).
    """
    check(pairs)
    logits, other = pairs.student, pairs.teacher
    rows, vocabulary = logits.shape
    found = torch.empty(8, rows, dtype=torch.float32, device=logits.device)
    if rows:
        programs().measure_row[(rows,)](
            logits,
            other,
            pairs.target_ids,
            found,
            logits.stride(0),
            other.stride(0),
            vocabulary,
            *numbers(pairs),
            KL=FORMS[type(pairs.divergence)].kl,
            **shape(pairs),
        )
    return Statistics(*found.unbind())


def pull_(
    pairs: RowPairs, found: Statistics, divergence_scale: Tensor, taken_scale: Tensor
) -> None:
    """Overwrite the student's rows with their gradient."""
    check(pairs)
    logits, other = pairs.student, pairs.teacher
    rows, vocabulary = logits.shape
    if rows:
        programs().pull_row[(rows,)](
            logits,
            other,
            pairs.target_ids,
            found.normaliser,
            found.shift,
            found.pull_total,
            divergence_scale.float().contiguous(),
            taken_scale.float().contiguous(),
            logits.stride(0),
            other.stride(0),
            vocabulary,
            *numbers(pairs),
            **shape(pairs),
        )


COMPARER = Comparer(measure, pull_)


def numbers(pairs: RowPairs) -> tuple[float, float, float]:
    """What both programs compute with: 1 / T, the soft cap and the divergence's parameter."""
    share = FORMS[type(pairs.divergence)].share(pairs.divergence)
    return 1.0 / pairs.temperature, pairs.softcap or 0.0, share


def shape(pairs: RowPairs) -> dict[str, Any]:
    """What both programs are compiled for."""
    return {
        "TERMS": getattr(programs(), FORMS[type(pairs.divergence)].terms),
        "DIFFERENCE": pairs.is_difference,
        "CAPPED": pairs.softcap is not None,
        "BLOCK": BLOCK,
        "STAGES": STAGES,
        "num_warps": WARPS,
    }


def check(pairs: RowPairs) -> None:
    """What the programs take for granted."""
    logits, other, target_ids = pairs.student, pairs.teacher, pairs.target_ids
    assert logits.shape == other.shape, "student and teacher rows differ in shape"
    assert logits.stride(1) == other.stride(1) == 1, "the entries of a row must lie side by side"
    assert target_ids.shape == logits.shape[:1], "every row needs one taken token"
    assert target_ids.is_contiguous(), "taken tokens must lie side by side"
