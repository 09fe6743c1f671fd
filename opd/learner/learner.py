"""One optimizer step on a sum of weighted terms; knows no term by name."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from pydantic import Field
from torch import Tensor

from opd.config import part
from opd.errors import NumericError
from opd.learner.metrics import observe, over_ranks
from opd.learner.model import Causal, Model, head_of, hidden_states, layer_states, merged_weights
from opd.learner.rows import Rows, TakenLogprob, student_rows
from opd.learner.whole import Whole, whole_of
from opd.objective.loss import Loss, SequenceLoss
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


@dataclass(frozen=True)
class Share:
    """What a term asks of the micro-batches of an update, one entry each."""

    term: Term
    loss: Loss
    """What the rows compute."""
    mass: float
    """Over all micro-batches and ranks."""
    weights: Sequence[Tensor]
    """`[N]` each."""
    scales: Sequence[Tensor]
    """`[N]` each: what a token's loss is multiplied with before all are summed."""
    known: Sequence[Tensor] | None = None
    """`[N]` each: the losses, where they had to be known before the rows."""
    observed: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    """What was then observed, name to `[N]` each."""


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
        self.learning_rate_scale = 1.0
        """Multiplies the recipe's learning rate; lowered when a run goes back."""
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

    def contexts(self, step: int) -> dict[str, dict[str, Term]]:
        """Context to the terms that are active behind it; the student's own is always there."""
        found: dict[str, dict[str, Term]] = {"student": {}}
        for name, term in self.active(step).items():
            found.setdefault(term.context, {})[name] = term
        return found

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
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = defaultdict(float)
        for context, terms in self.contexts(step).items():
            pairs = list(zip(batches, scores, strict=True))
            pairs = [pair for pair in pairs if pair[0].context == context]
            shares = self.shares(terms, pairs, step)
            for number, pair in enumerate(pairs):
                self.backward(shares, number, *pair, totals)
        self.sum_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm).item()
        if not math.isfinite(norm):
            raise NumericError(
                f"step {step}: the gradient norm is {norm}; no weight was changed; lower "
                "optimizer.learning_rate or use model.dtype=float32"
            )
        learning_rate = self.settings.learning_rate.at(step, self.steps) * self.learning_rate_scale
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        return self.report(step, learning_rate, norm, totals)

    def shares(
        self,
        terms: Mapping[str, Term],
        pairs: Sequence[tuple[Batch, Mapping[str, Scores]]],
        step: int,
    ) -> dict[str, Share]:
        """What each term asks of its context's micro-batches, by denominators of the update."""
        batches, scores = [batch for batch, _ in pairs], [seen for _, seen in pairs]
        weights = {n: [term.weight(*pair) for pair in pairs] for n, term in terms.items()}
        joint = {name: term for name, term in terms.items() if term.spans_update}
        whole = None
        if joint:
            views = dict.fromkeys(view for term in joint.values() for view in term.views)
            whole = whole_of(batches, scores, list(views))
        if whole is not None:
            weights |= {n: whole.weights(term, weights[n]) for n, term in joint.items()}
        masses = self.masses(terms, weights, batches)
        factors = {
            name: term.coefficient.at(step, self.steps) / masses[name] if masses[name] > 0 else 0.0
            for name, term in terms.items()
        }
        shares = {
            name: Share(
                term=term,
                loss=term.loss,
                mass=masses[name],
                weights=weights[name],
                scales=[
                    factors[name] * term.scale(weight, batch, self.max_response_tokens)
                    for weight, batch in zip(weights[name], batches, strict=True)
                ],
            )
            for name, term in terms.items()
        }
        return shares if whole is None else shares | self.linearised(shares, whole, pairs)

    def masses(
        self,
        terms: Mapping[str, Term],
        weights: Mapping[str, Sequence[Tensor]],
        batches: Sequence[Batch],
    ) -> dict[str, float]:
        """The global denominator of each term; 0 where nothing counts."""
        local = dict.fromkeys(terms, (0.0, 0.0))
        for name, term in terms.items():
            for weight, batch in zip(weights[name], batches, strict=True):
                mass, count = local[name]
                mass += term.mass(weight, batch, self.max_response_tokens).item()
                local[name] = mass, count + term.count(weight, batch).item()
        ranks: list[dict[str, tuple[float, float]]] = gather_object([local])
        totals = {
            name: (sum(rank[name][0] for rank in ranks), sum(rank[name][1] for rank in ranks))
            for name in terms
        }
        return pooled(terms, totals)

    def linearised(
        self,
        shares: Mapping[str, Share],
        whole: Whole,
        pairs: Sequence[tuple[Batch, Mapping[str, Scores]]],
    ) -> dict[str, Share]:
        """The shares of sequence losses with what pulls at each token in place of the scales."""
        losses = {
            n: s.term.loss for n, s in shares.items() if isinstance(s.term.loss, SequenceLoss)
        }
        inner = {name: loss.inner or TakenLogprob() for name, loss in losses.items()}
        values: dict[str, list[Tensor]] = {name: [] for name in losses}
        logprob: list[Tensor] = []
        entropy: list[Tensor] = []
        for number, pair in enumerate(pairs):
            asked = {name: (shares[name].scales[number] != 0).float() for name in losses}
            with torch.no_grad():
                rows = self.rows(*pair, inner, asked, {n: shares[n].term.exit for n in losses})
            for name in losses:
                values[name].append(rows.losses[name])
            logprob.append(rows.logprob)
            entropy.append(rows.entropy)
        whole = whole.with_student(logprob, entropy)
        found: dict[str, Share] = {}
        for name, loss in losses.items():
            scale = whole.gathered(shares[name].scales)
            pull, known, observed = whole.linearised(loss, whole.gathered(values[name]), scale)
            found[name] = replace(
                shares[name],
                loss=inner[name],
                scales=whole.own(pull),
                known=whole.own(known),
                observed={key: whole.own(value) for key, value in observed.items()},
            )
        return found

    def rows(
        self,
        batch: Batch,
        scores: Mapping[str, Scores],
        losses: Mapping[str, Loss],
        scales: Mapping[str, Tensor],
        exits: Mapping[str, int | None],
    ) -> Rows:
        """One pass of the student over a micro-batch; each loss is of the layer in `exits`."""
        early = {layer for layer in exits.values() if layer is not None}
        with self.recipe.autocast(self.accelerator.device):
            states = layer_states(self.model, batch.student, sorted(early))
            head = head_of(self.model)
            found: dict[int | None, Rows] = {}
            for layer, hidden in states.items():
                here = {name: loss for name, loss in losses.items() if exits[name] == layer}
                asked = {name: scales[name] for name in here}
                found[layer] = student_rows(
                    hidden, head, batch, scores, here, asked, self.temperature
                )
        # Anchors the graph: a micro-batch whose terms are all empty still yields gradients of zero.
        anchor = sum(hidden.sum() * 0.0 for hidden in states.values())
        return replace(
            found[None],
            total=sum(rows.total for rows in found.values()) + anchor,
            losses={n: of for rows in found.values() for n, of in rows.losses.items()},
            observed={n: of for rows in found.values() for n, of in rows.observed.items()},
        )

    def backward(
        self,
        shares: Mapping[str, Share],
        number: int,
        batch: Batch,
        scores: Mapping[str, Scores],
        totals: dict[str, float],
    ) -> None:
        """Add the gradient of one micro-batch; add what it observed to `totals`."""
        losses = {name: share.loss for name, share in shares.items()}
        scales = {name: share.scales[number] for name, share in shares.items()}
        exits = {name: share.term.exit for name, share in shares.items()}
        rows = self.rows(batch, scores, losses, scales, exits)
        rows.total.backward()
        for name, share in shares.items():
            weight, mass = share.weights[number], share.mass
            losses_found = rows.losses[name] if share.known is None else share.known[number]
            if mass > 0:
                numerator = share.term.numerator(
                    losses_found, weight, batch, self.max_response_tokens
                )
                totals[f"sum:loss/{name}"] += numerator.item() / mass
            counted = weight > 0
            joint = {key: values[number] for key, values in share.observed.items()}
            for key, value in {**rows.observed[name], **joint}.items():
                totals[f"sum:{key}/{name}"] += value[counted].sum().item()
                totals[f"count:{key}/{name}"] += counted.sum().item()
        totals["sum:tokens"] += batch.tokens
        if batch.context == "student":
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
        """What the update did, over all ranks."""
        metrics = over_ranks(totals)
        tokens = int(metrics.pop("tokens", 0))
        return Update(step, learning_rate, norm, tokens, metrics)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the frozen weights that the next step depends on."""
        trainable = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        return {
            "weights": trainable,
            "optimizer": self.optimizer.state_dict(),
            "learning_rate_scale": self.learning_rate_scale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`, bit for bit."""
        self.model.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.learning_rate_scale = state["learning_rate_scale"]


def pooled(
    terms: Mapping[str, Term], totals: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Denominators of terms from the mass and the count of each: dividing by mass * pool / count
    makes a term its own mean times its share of what its pool counts."""
    pools: dict[str, float] = defaultdict(float)
    for name, term in terms.items():
        if term.pool is not None:
            pools[term.pool] += totals[name][1]
    masses = {}
    for name, term in terms.items():
        mass, count = totals[name]
        masses[name] = mass * pools[term.pool] / count if term.pool is not None and count else mass
    return masses
