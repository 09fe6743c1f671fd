"""Every loss of a micro-batch from one pass over the student's rows.

Legend: `N` action tokens, `b` rows of a block, `D` hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from opd.head import Head, taken, taken_and_entropy
from opd.learner.chunked import chosen_rows, fused
from opd.learner.chunks import RowFunction
from opd.learner.row_pairs import Compared
from opd.learner.sides import StudentLogits
from opd.learner.spans import span_losses
from opd.objective.logits import ListedLogits, Logits
from opd.objective.loss import Comparison, HiddenLoss, Loss, RowLoss, TokenLoss
from opd.objective.span_loss import SpanLoss
from opd.types import Batch, Listed, Observed, Scores, Seen


@dataclass(frozen=True)
class Rows:
    """What one pass over the student's rows yields."""

    total: Tensor
    """The sum of scales times losses, with gradient."""
    logprob: Tensor
    """`[N]` nats of the taken tokens at the sampling temperature."""
    entropy: Tensor
    """`[N]` nats at the sampling temperature."""
    losses: Mapping[str, Tensor]
    """`[N]` for each loss, 0 where nothing counts."""
    observed: Mapping[str, Mapping[str, Tensor]]
    """What each loss reports of itself, name to `[N]`."""
    counts: Tensor
    """`[N]` bool, where some loss counts."""
    teachers: Mapping[str, tuple[Tensor, Tensor]]
    """`[N]` log-prob of the taken tokens and `[N]` entropy, nats, of the views that some loss has
    read whole; 0 where nothing counts."""


class TakenLogprob(TokenLoss):
    """The taken token's log-prob: no loss of its own, but what sequence losses are functions of."""

    @property
    def views(self) -> tuple[str, ...]:
        return ()

    def tokens(
        self, logprob: Tensor, batch: Batch, teachers: Mapping[str, Seen]
    ) -> tuple[Tensor, Observed]:
        return logprob, {}


class Columns:
    """Values a token, filled a few rows at a time: (kind, name) to `[N]`."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.nothing = torch.zeros(tokens, device=device)
        self.columns: dict[tuple[str, str], Tensor] = {}

    def write(self, kind: str, name: str, index: Tensor, values: Tensor) -> None:
        """Put `values` `[b]` at the tokens `index` `[b]`."""
        if (kind, name) not in self.columns:
            self.columns[kind, name] = self.nothing.to(values.dtype, copy=True)
        self.columns[kind, name][index] = values.detach()

    def measure(self, kind: str, index: Tensor, logprob: Tensor, entropy: Tensor) -> None:
        """Put what one side thinks of the taken tokens."""
        self.write(kind, "logprob", index, logprob)
        self.write(kind, "entropy", index, entropy)

    def note(self, name: str, index: Tensor, losses: Tensor, observed: Observed) -> None:
        """Put what a loss is, and what it reports."""
        self.write("loss", name, index, losses)
        for key, values in observed.items():
            self.write(f"observed by {name}", key, index, values)

    def of(self, kind: str) -> dict[str, Tensor]:
        """Name to `[N]`."""
        return {name: values for (of, name), values in self.columns.items() if of == kind}


@dataclass(frozen=True)
class Pass(RowFunction):
    """The losses of a micro-batch, as the chunks call them."""

    batch: Batch
    scores: Mapping[str, Scores]
    losses: Mapping[str, Loss]
    scales: Mapping[str, Tensor]
    temperature: float
    counted: Tensor
    """The tokens, of `batch`, that some scale asks for."""
    columns: Columns

    @cached_property
    def comparison(self) -> Comparison | None:
        """The one comparison that every row loss is about, at the sampling temperature."""
        of_rows = [loss for loss in self.losses.values() if isinstance(loss, RowLoss)]
        named = [loss.comparison for loss in of_rows]
        if not named or any(other != named[0] for other in named):
            return None
        only = named[0]
        return only if only is not None and only.temperature == self.temperature else None

    def target_ids(self, rows: slice) -> Tensor:
        return self.batch.target_ids[self.counted[rows]]

    def __call__(
        self, rows: slice, student: StudentLogits, teachers: Mapping[str, Logits]
    ) -> Tensor:
        index = self.counted[rows]
        part = self.batch.rows(index)
        known = {**teachers, **self.listed(index, student.vocabulary)}

        def of_rows(loss: RowLoss) -> tuple[Tensor, Observed]:
            return loss.rows(student, part.target_ids, part.sampled_logprob, known)

        def logprob() -> Tensor:
            return taken(student.log_probs(self.temperature), part.target_ids)

        value = self.summed(index, part, of_rows, logprob)
        sides = {"student": student, **{f"teacher {view}": side for view, side in teachers.items()}}
        for kind, side in sides.items():
            if side is student or side.is_read(self.temperature):
                table = side.measured(self.temperature)
                self.columns.measure(kind, index, *taken_and_entropy(table, part.target_ids))
        return value

    def listed(self, index: Tensor, vocabulary: int) -> dict[str, Logits]:
        """The rows `index` of the views of which no hidden states were recorded."""
        return {
            view: ListedLogits(
                Listed(seen.listed.ids[index], seen.listed.logprob[index]),
                vocabulary,
                seen.temperature,
            )
            for view, seen in self.scores.items()
            if seen.listed is not None
        }

    def of_comparison(self, rows: slice, found: Compared) -> Tensor:
        index = self.counted[rows]
        part = self.batch.rows(index)
        comparison = self.comparison
        assert comparison is not None, "nothing was to be compared"

        def of_rows(loss: RowLoss) -> tuple[Tensor, Observed]:
            mine = loss.comparison
            assert mine is not None, "a loss that comes down to no comparison"
            return mine.loss(found.divergence, found.logprob.detach(), part.sampled_logprob)

        value = self.summed(index, part, of_rows, lambda: found.logprob)
        teacher = f"teacher {comparison.view}"
        self.columns.measure("student", index, found.logprob, found.entropy)
        self.columns.measure(teacher, index, found.teacher_logprob, found.teacher_entropy)
        return value

    def summed(
        self,
        index: Tensor,
        part: Batch,
        of_rows: Callable[[RowLoss], tuple[Tensor, Observed]],
        logprob: Callable[[], Tensor],
    ) -> Tensor:
        """The sum of scales times losses `[b]` of the tokens `index`, whose rows are `part`."""
        value = torch.zeros((), device=index.device).expand(len(index))
        for name, loss in self.losses.items():
            if isinstance(loss, RowLoss):
                per_token, observed = of_rows(loss)
            else:
                assert isinstance(loss, TokenLoss), f"{name} is a loss neither of rows nor tokens"
                seen = {view: self.scores[view].rows(index) for view in loss.views}
                per_token, observed = loss.tokens(logprob(), part, seen)
            scale = self.scales[name][index]
            # A loss may be infinite where nothing is asked of it, and 0 * inf is NaN.
            value = value + scale * per_token.masked_fill(scale == 0, 0.0)
            self.columns.note(name, index, per_token, observed)
        return value


def student_rows(
    hidden: Tensor,
    head: Head,
    batch: Batch,
    scores: Mapping[str, Scores],
    losses: Mapping[str, Loss],
    scales: Mapping[str, Tensor],
    temperature: float,
) -> Rows:
    """Every loss, the taken log-probs and the entropy from one pass over the student's scores.

    `hidden` is `[N, D]` with gradient; each loss counts as much as its scale `[N]` says. Where all
    scales are 0 the log-probs and the entropy are computed, and no gradient.
    """
    of_states = {n: loss for n, loss in losses.items() if isinstance(loss, HiddenLoss)}
    of_spans = {n: loss for n, loss in losses.items() if isinstance(loss, SpanLoss)}
    losses = {n: s for n, s in losses.items() if n not in of_states and n not in of_spans}
    counts = torch.zeros_like(batch.target_ids, dtype=torch.bool)
    for name in losses:
        counts |= scales[name] != 0
    counted, idle = counts.nonzero().squeeze(-1), (~counts).nonzero().squeeze(-1)
    columns = Columns(batch.tokens, hidden.device)
    function = Pass(batch, scores, losses, scales, temperature, counted, columns)
    read = [view for loss in losses.values() if isinstance(loss, RowLoss) for view in loss.views]
    teachers = {
        view: (chosen_rows(scores[view].hidden, counted), scores[view].head)
        for view in read
        if scores[view].listed is None
    }
    total = fused(chosen_rows(hidden, counted), head, teachers, function)
    if len(idle):
        measured = head.score(hidden.detach()[idle], batch.target_ids[idle], temperature)
        columns.measure("student", idle, *measured)
    for name, loss in of_states.items():
        index = scales[name].nonzero().squeeze(-1)
        theirs = {view: scores[view].hidden[index] for view in loss.views}
        with torch.autocast(hidden.device.type, enabled=False):
            per_token, observed = loss.states(hidden[index], batch.rows(index), theirs)
        total = total + (scales[name][index] * per_token).sum()
        columns.note(name, index, per_token, observed)
    for name, loss in of_spans.items():
        index = scales[name].nonzero().squeeze(-1)
        taught = scores[loss.view]
        found = span_losses(loss, hidden, head, batch.target_ids, taught, index, temperature)
        total = total + (scales[name][index] * found).sum()
        columns.note(name, index, found, {})
    student = columns.of("student")
    losses_found = columns.of("loss")
    return Rows(
        total=total,
        logprob=student.get("logprob", columns.nothing),
        entropy=student.get("entropy", columns.nothing),
        losses={name: losses_found.get(name, columns.nothing) for name in scales},
        observed={name: columns.of(f"observed by {name}") for name in scales},
        counts=counts,
        teachers={
            view: (found["logprob"], found["entropy"])
            for view in teachers
            if (found := columns.of(f"teacher {view}"))
        },
    )
