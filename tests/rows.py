"""One row through a loss or a target, in float64, for the papers' numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opd.objective.logits import Logits
from opd.objective.loss import RowLoss
from opd.objective.target import Target
from opd.types import Observed

Row = Sequence[float]

D0_STUDENT, D0_TEACHER = (0.4, 0.4, 0.2), (0.7, 0.2, 0.1)
A_STUDENT, A_TEACHER = (0.5, 0.25, 0.25), (0.7, 0.2, 0.1)


def logs(row: Row) -> Tensor:
    """Log-probs `[1, V]` of probabilities, or of anything in proportion to them."""
    return torch.tensor([row], dtype=torch.float64).log().log_softmax(-1)


def said_by(target: Target, student: Row, taken: int = 0, **teachers: Row) -> list[float]:
    """The target's probabilities."""
    said = {view: logs(row) for view, row in teachers.items()}
    return target(logs(student), said, torch.tensor([taken]))[0].softmax(-1)[0].tolist()


def pulled(
    loss: RowLoss, student: Row, taken: int = 0, **teachers: Row
) -> tuple[float, list[float], Observed]:
    """(the loss, its gradient in the student's logits, what it observed)."""
    logits = logs(student).requires_grad_()
    ids = torch.tensor([taken])
    said = {view: Logits(logs(row)) for view, row in teachers.items()}
    value, observed = loss.rows(Logits(logits), ids, logits[:, 0].detach(), said)
    (pull,) = torch.autograd.grad(value.sum(), logits)
    return value.item(), pull[0].tolist(), observed
