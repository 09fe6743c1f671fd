"""What one side says of the next token, as a loss reads it.

Legend: `n` rows, `V` vocabulary, `K` chosen entries. Scores are logits at temperature 1.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from opd.head import at_least_single, log_softmax
from opd.types import Listed

LEAST_TAIL = 1e-7
"""Probability kept for what is not listed, so that its log stays finite in float32."""


class Logits:
    """Scores `[n, V]`; nothing is computed twice for the losses that share them."""

    def __init__(self, scores: Tensor) -> None:
        self._scores = scores
        self._log_probs: dict[float, Tensor] = {}

    @property
    def vocabulary(self) -> int:
        return self._scores.shape[-1]

    def scores(self) -> Tensor:
        """`[n, V]` in float32 or float64."""
        return at_least_single(self._scores)

    def log_probs(self, temperature: float) -> Tensor:
        """Log-softmax `[n, V]` of the scores over `temperature`."""
        if temperature not in self._log_probs:
            self._log_probs[temperature] = self.normalised(temperature)
        return self._log_probs[temperature]

    def normalised(self, temperature: float) -> Tensor:
        """What `log_probs` keeps."""
        return log_softmax(self.scores(), temperature)

    def is_read(self, temperature: float) -> bool:
        """Whether some loss has asked for the log-probs at `temperature`."""
        return temperature in self._log_probs

    @torch.no_grad()
    def measured(self, temperature: float) -> Tensor:
        """The log-probs `[n, V]` without gradients: what no loss has asked for is not kept."""
        known = self._log_probs.get(temperature)
        return self.normalised(temperature) if known is None else known.detach()

    def top(self, size: int) -> Tensor:
        """Ids `[n, size]` of the highest scores."""
        return self.scores().detach().topk(size, dim=-1).indices

    def at(self, ids: Tensor) -> Tensor:
        """Scores `[n, K]` of `ids` `[n, K]`."""
        return self.scores().gather(-1, ids)


class ListedLogits(Logits):
    """Rows of which the highest entries are known; the others share what these leave, evenly."""

    def __init__(self, listed: Listed, vocabulary: int, temperature: float) -> None:
        left = listed.logprob.logsumexp(-1, keepdim=True).clamp(max=-LEAST_TAIL)
        others = torch.log(-torch.expm1(left)) - log(max(1, vocabulary - listed.ids.shape[-1]))
        rows = others.repeat(1, vocabulary).scatter(-1, listed.ids, listed.logprob)
        super().__init__(rows * temperature)
        self._listed = listed
        self._log_probs[temperature] = rows

    def top(self, size: int) -> Tensor:
        return self._listed.ids[:, :size]
