"""An update's tokens over all micro-batches and ranks, for what depends on more than one of them.

Every rank holds the whole and computes the same from it. Legend: `n` tokens of the whole, `N` of a
micro-batch, `S` sequences of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from accelerate.utils import gather_object
from torch import Tensor

from opd.objective.loss import Observed, SequenceLoss
from opd.objective.term import Term
from opd.objective.weight import UpdateWeight
from opd.types import Batch, Scores, Seen, Tokens

T = TypeVar("T")


@dataclass(frozen=True)
class Whole:
    """All tokens, sequence by sequence in the order of the rollouts, rank after rank."""

    tokens: Tokens
    order: Tensor
    """`[n]` which token stands where, as micro-batches are laid end to end, rank after rank."""
    places: tuple[Tensor, ...]
    """`[N]` of each of this rank's micro-batches: where its tokens stand in the whole."""
    teachers: Mapping[str, Seen]

    def gathered(self, values: Sequence[Tensor]) -> Tensor:
        """`[n]` from what every rank has of its own micro-batches, `[N]` each."""
        laid = torch.cat([one for rank in of_ranks(on_cpu(values)) for one in rank])
        return laid.to(self.order.device)[self.order]

    def own(self, values: Tensor) -> list[Tensor]:
        """Of `[n]` those of this rank's micro-batches, `[N]` each."""
        return [values[place] for place in self.places]

    def with_student(self, logprob: Sequence[Tensor], entropy: Sequence[Tensor]) -> Whole:
        """Beside the teachers what the student thinks, `[N]` of this rank's micro-batches each."""
        present = torch.ones_like(self.order, dtype=torch.bool)
        student = Seen(self.gathered(logprob), self.gathered(entropy), present)
        return replace(self, teachers={**self.teachers, "student": student})

    def weights(self, term: Term, weights: Sequence[Tensor]) -> list[Tensor]:
        """The weights `[N]` of a term, times those that only the whole update knows."""
        product = self.gathered(weights)
        for weight in term.weights:
            if isinstance(weight, UpdateWeight):
                index = product.nonzero().squeeze(-1)
                product[index] *= weight.over_update(self.tokens.rows(index), self.seen(index))
        if isinstance(term.loss, SequenceLoss):
            index = product.nonzero().squeeze(-1)
            product[index] *= term.loss.counts(self.tokens.rows(index), self.seen(index))
        return self.own(product)

    def linearised(
        self, loss: SequenceLoss, values: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Observed]:
        """`[n]` derivative of sum(scale * loss) in each of the values `[n]`, the losses `[n]`, and
        metrics `[n]`; 0 where the scale `[n]` is."""
        index = scale.nonzero().squeeze(-1)
        leaf = values[index].requires_grad_()
        per_token, observed = loss.sequences(leaf, self.tokens.rows(index), self.seen(index))
        total = (scale[index] * per_token).sum()
        (pull,) = torch.autograd.grad(total, leaf, allow_unused=True, materialize_grads=True)

        def spread(some: Tensor) -> Tensor:
            return torch.zeros_like(values).index_copy(0, index, some.detach().to(values.dtype))

        return spread(pull), spread(per_token), {k: spread(v) for k, v in observed.items()}

    def seen(self, index: Tensor) -> Mapping[str, Seen]:
        """What each teacher thinks of the tokens `index`."""
        return {
            view: Seen(seen.logprob[index], seen.entropy[index], seen.present[index])
            for view, seen in self.teachers.items()
        }


def whole_of(
    batches: Sequence[Batch], scores: Sequence[Mapping[str, Scores]], views: Sequence[str]
) -> Whole | None:
    """The whole of every rank's micro-batches; None where no rank has any."""
    ranks = of_ranks([stripped(batch) for batch in batches])
    if not any(ranks):
        return None
    laid, sequence = end_to_end(ranks)
    order = sequence.argsort(stable=True)
    where = torch.empty_like(order)
    where[order] = torch.arange(len(order))
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    start = sum(tokens.tokens for earlier in ranks[:rank] for tokens in earlier)
    mine = where[start : start + sum(batch.tokens for batch in batches)]
    device = batches[0].target_ids.device if batches else torch.device("cpu")
    found = Whole(
        tokens=moved(laid.rows(order), device),
        order=order.to(device),
        places=mine.to(device).split([batch.tokens for batch in batches]),
        teachers={},
    )
    seen = {view: [each[view].rows() for each in scores] for view in views}
    teachers = {
        view: Seen(
            found.gathered([each.logprob for each in of_batches]),
            found.gathered([each.entropy for each in of_batches]),
            found.gathered([each.present for each in of_batches]),
        )
        for view, of_batches in seen.items()
    }
    return replace(found, teachers=teachers)


def end_to_end(ranks: Sequence[Sequence[Tokens]]) -> tuple[Tokens, Tensor]:
    """All micro-batches one after another, their sequences in the order of the rollouts, and of
    every token `[n]` the number of its sequence in that order."""
    members: list[Tensor] = []
    groups: list[Tensor] = []
    start = 0
    for rank in ranks:
        members += [start + torch.tensor(tokens.members) for tokens in rank]
        groups += [start + tokens.group for tokens in rank]
        start += 1 + max((max(tokens.members) for tokens in rank), default=0)
    parts = [tokens for rank in ranks for tokens in rank]
    by_member = torch.cat(members).argsort()
    number = torch.empty_like(by_member)
    number[by_member] = torch.arange(len(by_member))
    numbers = number.split([tokens.sequences for tokens in parts])
    sequence = torch.cat([n[tokens.sequence] for n, tokens in zip(numbers, parts, strict=True)])
    laid: dict[str, Tensor] = {}
    for item in fields(Tokens):
        if item.name in ("members", "group", "sequence"):
            continue
        values = torch.cat([getattr(tokens, item.name) for tokens in parts])
        laid[item.name] = values if item.name in Tokens.BY_TOKEN else values[by_member]
    group = torch.cat(groups)[by_member]
    joined = Tokens(members=tuple(range(len(group))), group=group, sequence=sequence, **laid)
    return joined, sequence


def stripped(batch: Batch) -> Tokens:
    """A micro-batch without its model input, on the CPU."""
    kept = {item.name: getattr(batch, item.name) for item in fields(Tokens)}
    return moved(Tokens(**kept), torch.device("cpu"))


def moved(tokens: Tokens, device: torch.device) -> Tokens:
    """`tokens` with every tensor on `device`."""
    tensors = {n: v.to(device) for n, v in vars(tokens).items() if isinstance(v, Tensor)}
    return replace(tokens, **tensors)


def on_cpu(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.detach().cpu() for value in values]


def of_ranks(mine: T) -> list[T]:
    """What every rank has, rank after rank."""
    return gather_object([mine])
