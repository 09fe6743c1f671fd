"""A language-model head: what turns hidden states into scores of the vocabulary.

Legend: `n` rows, `V` vocabulary, `D` hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opd import product

CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 27}
"""Scores held at once, as far as rows are not too few: 32 MiB in float32 on a CPU, which is about
its last cache, and 512 MiB on a GPU."""

FEWEST_ROWS = {"cpu": 256, "cuda": 1024}
"""With fewer rows a product with the head waits for the head."""


def chunk_size(vocabulary: int, device: torch.device) -> int:
    """How many rows of scores are held at once."""
    kind = "cpu" if device.type == "cpu" else "cuda"
    return max(FEWEST_ROWS[kind], CHUNK_ELEMENTS[kind] // vocabulary)


def at_least_single(scores: Tensor) -> Tensor:
    """Half precision raised to float32; float64 as it is."""
    return scores if scores.dtype == torch.float64 else scores.float()


@dataclass(frozen=True)
class Head:
    """The last layer of a language model."""

    weight: Tensor
    """`[V, D]`."""
    bias: Tensor | None = None
    """`[V]`."""
    softcap: float | None = None
    """Logits become `softcap * tanh(logits / softcap)`."""

    def capped(self, scores: Tensor) -> Tensor:
        """Logits from what the projection yields, of any shape."""
        if self.softcap is None:
            return scores
        return self.softcap * (scores / self.softcap).tanh()

    def logits(self, hidden: Tensor) -> Tensor:
        """`[n, D]` hidden states to `[n, V]` logits in float32 (float64 from float64)."""
        dtype = product.autocast_dtype(hidden.device) or self.weight.dtype
        with torch.autocast(hidden.device.type, enabled=False):
            scores = product.scores(hidden.to(dtype), self.weight.to(dtype), self.bias)
        return self.capped(scores)

    @torch.no_grad()
    def score(
        self, hidden: Tensor, target_ids: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """(`[n]` log-prob of `target_ids`, `[n]` entropy), in nats, a chunk of rows at a time."""
        size = chunk_size(self.weight.shape[0], hidden.device)
        parts = [
            taken_and_entropy(log_softmax(self.logits(rows), temperature), ids)
            for rows, ids in zip(hidden.split(size), target_ids.split(size), strict=True)
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def over(scores: Tensor, temperature: float) -> Tensor:
    """`scores / temperature`, without a copy at 1."""
    return scores if temperature == 1.0 else scores / temperature


def log_softmax(scores: Tensor, temperature: float) -> Tensor:
    """Log-probs `[n, V]` of `[n, V]` scores over `temperature`."""
    # torch's own adds up a vocabulary of 150,000 with ten times the rounding.
    scores = over(scores - scores.detach().amax(-1, keepdim=True), temperature)
    return scores - scores.logsumexp(-1, keepdim=True)


def taken(log_probs: Tensor, ids: Tensor) -> Tensor:
    """The entries `[n]` of `[n, V]` that belong to `ids` `[n]`."""
    return log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def taken_and_entropy(log_probs: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(`[n]` log-prob of `ids`, `[n]` entropy) of `[n, V]` log-probs, in nats."""
    # exp(-inf) * -inf is NaN; a token that cannot be drawn adds nothing to the entropy.
    surprise = log_probs.exp().mul_(log_probs).masked_fill_(log_probs.isneginf(), 0.0)
    return taken(log_probs, ids), -surprise.sum(-1)
