"""One optimizer step on a sum of weighted terms; knows no term by name."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from pydantic import Field
from torch import Tensor

from opd.config import part
from opd.errors import NumericError
from opd.learner.model import Causal, Model, head_of, hidden_states, merged_weights
from opd.learner.rows import Rows, student_rows
from opd.objective.schedule import Between, Constant, Schedule
from opd.objective.term import Term
from opd.parts import tell
from opd.types import Batch, Context, Scores, Update


@part
class Optimizer:
    """AdamW. arXiv 1711.05101."""

    learning_rate: Annotated[Schedule, Between(0)] = field(
        default_factory=lambda: Constant(value=1e-6)
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


class Learner:
    """The student, its optimizer and the terms that it minimises."""

    def __init__(
        self,
        model: Model,
        terms: Mapping[str, Term],
        optimizer: Optimizer,
        accelerator: Accelerator,
        *,
        steps: int,
        temperature: float,
        max_response_tokens: int,
    ) -> None:
        self.recipe = model
        self.terms = terms
        self.settings = optimizer
        self.accelerator = accelerator
        self.steps = steps
        self.temperature = temperature
        self.max_response_tokens = max_response_tokens
        self.model: Causal = model.open(accelerator.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=0.0,
            betas=(optimizer.beta1, optimizer.beta2),
            weight_decay=optimizer.weight_decay,
        )

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) for the rollout engine, adapters folded in."""
        return merged_weights(self.model)

    def active(self, step: int) -> dict[str, Term]:
        """The terms whose coefficient is not 0 at `step`."""
        return {n: t for n, t in self.terms.items() if t.coefficient.at(step, self.steps) != 0}

    @torch.no_grad()
    def logprobs(self, context: Context, target_ids: Tensor) -> Tensor:
        """`[N]` nats of `target_ids` under the student at the sampling temperature."""
        with self.recipe.autocast(self.accelerator.device):
            hidden = hidden_states(self.model, context)
        return head_of(self.model).score(hidden, target_ids, self.temperature)[0]

    def update(
        self, batches: Sequence[Batch], scores: Sequence[Mapping[str, Scores]], step: int
    ) -> Update:
        """Take one optimizer step on all `batches`, each with its teacher `scores`.

        Every term divides by its own weight mass, summed over micro-batches and ranks before any
        backward, so that how the batch was split changes nothing. Raises NumericError, with the
        weights untouched, when the gradient is not finite.
        """
        tell(self.terms, step, self.steps)
        terms = self.active(step)
        masses = self.masses(terms, batches, scores)
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = defaultdict(float)
        for batch, batch_scores in zip(batches, scores, strict=True):
            self.backward(terms, masses, batch, batch_scores, step, totals)
        self.sum_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm).item()
        if not math.isfinite(norm):
            raise NumericError(
                f"step {step}: the gradient norm is {norm}; no weight was changed; lower "
                "optimizer.learning_rate or use model.dtype=float32"
            )
        learning_rate = self.settings.learning_rate.at(step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        return self.report(step, learning_rate, norm, totals)

    def masses(
        self,
        terms: Mapping[str, Term],
        batches: Sequence[Batch],
        scores: Sequence[Mapping[str, Scores]],
    ) -> dict[str, float]:
        """The global denominator of each term."""
        local = dict.fromkeys(terms, 0.0)
        for batch, batch_scores in zip(batches, scores, strict=True):
            for name, term in terms.items():
                weight = term.weight(batch, batch_scores)
                local[name] += term.mass(weight, batch, self.max_response_tokens).item()
        ranks: list[dict[str, float]] = gather_object([local])
        return {name: sum(rank[name] for rank in ranks) for name in terms}

    def backward(
        self,
        terms: Mapping[str, Term],
        masses: Mapping[str, float],
        batch: Batch,
        scores: Mapping[str, Scores],
        step: int,
        totals: dict[str, float],
    ) -> None:
        """Add the gradient of one micro-batch; add what it observed to `totals`."""
        budget = self.max_response_tokens
        weights = {name: term.weight(batch, scores) for name, term in terms.items()}
        scales = {
            name: term.scale(weights[name], batch, budget)
            * (term.coefficient.at(step, self.steps) / masses[name] if masses[name] > 0 else 0.0)
            for name, term in terms.items()
        }
        losses = {name: term.loss for name, term in terms.items()}
        with self.recipe.autocast(self.accelerator.device):
            hidden = hidden_states(self.model, batch.student)
            head = head_of(self.model)
            rows = student_rows(hidden, head, batch, scores, losses, scales, self.temperature)
        # Anchors the graph: a micro-batch whose terms are all empty still yields gradients of zero.
        (rows.total + hidden.sum() * 0.0).backward()
        for name, term in terms.items():
            if masses[name] > 0:
                numerator = term.numerator(rows.losses[name], weights[name], batch, budget)
                totals[f"sum:loss/{name}"] += numerator.item() / masses[name]
            counted = weights[name] > 0
            for key, value in rows.observed[name].items():
                totals[f"sum:{key}/{name}"] += value[counted].sum().item()
                totals[f"count:{key}/{name}"] += counted.sum().item()
        observe(rows, batch, scores, totals)

    def sum_gradients(self) -> None:
        """Sum gradients over ranks: the denominators are global already, so nothing is averaged."""
        if self.accelerator.num_processes == 1:
            return
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            total = self.accelerator.reduce(parameter.grad, "sum")
            parameter.grad = cast("Tensor", total)

    def report(
        self, step: int, learning_rate: float, norm: float, totals: Mapping[str, float]
    ) -> Update:
        """Over all ranks: sums, means where a count stands beside the sum, and largest values."""
        ranks: list[Mapping[str, float]] = gather_object([dict(totals)])
        names = sorted({name for rank in ranks for name in rank})
        found: dict[str, float] = {}
        for name in names:
            values = [rank[name] for rank in ranks if name in rank]
            found[name] = max(values) if name.startswith("max:") else sum(values)
        metrics: dict[str, float] = {}
        for name, value in found.items():
            kind, _, key = name.partition(":")
            if kind != "count":
                metrics[key] = value / max(1.0, found.get(f"count:{key}", 1.0))
        tokens = int(metrics.pop("tokens", 0))
        return Update(step, learning_rate, norm, tokens, metrics)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the frozen weights that the next step depends on."""
        trainable = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        return {"weights": trainable, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`, bit for bit."""
        self.model.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])


def observe(
    rows: Rows, batch: Batch, scores: Mapping[str, Scores], totals: dict[str, float]
) -> None:
    """Add entropy, sampler mismatch and the teachers' gaps on the taken tokens to `totals`."""

    def add(name: str, values: Tensor) -> None:
        totals[f"sum:{name}"] += values.sum().item()
        totals[f"count:{name}"] += values.numel()

    logprob = rows.logprob
    totals["sum:tokens"] += batch.tokens
    add("entropy", rows.entropy)
    sampled = ~batch.sampled_logprob.isnan()
    mismatch = (logprob - batch.sampled_logprob)[sampled].abs()
    add("mismatch/mean", mismatch)
    largest = mismatch.max().item() if mismatch.numel() else 0.0
    totals["max:mismatch/max"] = max(totals["max:mismatch/max"], largest)
    for view, seen in scores.items():
        add(f"teacher_present/{view}", seen.present.float())
        if view in rows.teachers:
            (taken, entropy), known = rows.teachers[view], seen.present & rows.counts
        elif seen.is_scored:
            taken, entropy, known = seen.logprob, seen.entropy, seen.present
        else:
            continue
        add(f"teacher_gap/{view}", (taken - logprob)[known])
        add(f"teacher_entropy/{view}", entropy[known])
