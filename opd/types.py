"""The public data that flows: frozen, shaped, filled once.

Legend, obeyed everywhere: `G` rollouts per problem, `S` sequences in a batch, `N` action tokens in
a batch, `V` vocabulary, `K` support size, `D` hidden width, `R x L` rows by positions of a model
input, `P` prompt tokens, `T` response tokens of one rollout. `log_*` and `*logprob*` are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal, Self

from torch import Tensor

from opd.head import Head

Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length", "abort"]
Status = Literal["pass", "fail", "no_answer", "no_verdict"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """All that the student, the engine and the evaluator may ever see of a problem."""

    id: str
    messages: tuple[Message, ...]

    @property
    def question(self) -> str:
        """The last user turn."""
        return next(m.content for m in reversed(self.messages) if m.role == "user")


@dataclass(frozen=True)
class Rollout:
    """One response to one prompt, exactly as sampled."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    """`[P]` token ids that the engine was given."""
    token_ids: tuple[int, ...]
    """`[T]` sampled token ids, the stop token included when there is one."""
    logprobs: tuple[float, ...]
    """`[T]` nats, under the sampling policy at the sampling temperature; NaN where a token was
    written down, or drawn behind another prompt than this one."""
    policy_step: int
    """Version of this run's weights that sampled it; -1 when none of them did."""
    finish: Finish
    text: str
    """The response decoded without special tokens, for rewards and views."""


@dataclass(frozen=True)
class Verdict:
    """What a reward thinks of a rollout. `no_verdict` means that the grader failed."""

    status: Status
    reward: float
    feedback: str | None = None
    answer: str | None = None
    """The final answer that was judged, written so that equal answers are equal texts as far as the
    reward can tell; what a majority is taken over. None where there is none to compare."""

    @property
    def success(self) -> bool:
        return self.status == "pass"


@dataclass(frozen=True)
class Context:
    """One model input: whole prompts and responses, and where action tokens are predicted.

    Rows are right-padded (`boundaries is None`, `R` rows) or packed (`R == 1`, `boundaries` holds
    the cumulative lengths of its segments).
    """

    input_ids: Tensor
    """`[R, L]` int64."""
    position_ids: Tensor
    """`[R, L]` int64, restarting at 0 in every sequence."""
    boundaries: Tensor | None
    """`[segments + 1]` int64 or None."""
    predict_at: Tensor
    """`[N]` int64, flat index into `R * L` of the position whose output predicts token n."""


Observed = Mapping[str, Tensor]
"""Names of metrics to one detached value per row or token."""


@dataclass(frozen=True)
class Seen:
    """What a teacher thinks of taken tokens, at the sampling temperature."""

    logprob: Tensor
    """`[n]` nats; 0 where absent."""
    entropy: Tensor
    """`[n]` nats; 0 where absent."""
    present: Tensor
    """`[n]` bool."""


@dataclass(frozen=True)
class Listed:
    """The most probable entries of a teacher's rows, the highest first."""

    ids: Tensor
    """`[N, K]` int64."""
    logprob: Tensor
    """`[N, K]` nats, at the sampling temperature; what they leave belongs to the other entries."""


@dataclass(frozen=True)
class Spans:
    """Where the tokens of a teacher with another tokenizer and the student's end together."""

    length: Tensor
    """`[N]` int64, the student's tokens of the span that ends here; 0 where none does."""
    others: Tensor
    """`[N]` nats, what the teacher gives its own tokens of that span but the one whose row is
    kept."""
    shared: Tensor
    """`[M, 2]` int64, student's and teacher's ids of vocabulary entries that are the same text."""
    row: Literal["last", "first"] = "last"
    """Of which of a span's tokens the row is kept, on both sides."""


@dataclass(frozen=True)
class Scores:
    """What a teacher thinks of a batch's action tokens, from a pass without gradients.

    Logits are not kept: `head.logits(hidden[...])` rebuilds them a chunk at a time. `logprob` and
    `entropy` are computed when one of them is first read, with `head` as it is then.
    """

    hidden: Tensor
    """`[N, D]`, zeros where the view is absent."""
    head: Head
    present: Tensor
    """`[N]` bool."""
    target_ids: Tensor
    """`[N]` int64, the taken tokens; of spans the teacher's own whose row is kept."""
    temperature: float
    """At which tokens are sampled."""
    known: tuple[Tensor, Tensor] | None = None
    """Log-probs and entropies `[N]` that were recorded; None where they follow from `hidden`."""
    listed: Listed | None = None
    """What was recorded of whole rows, in the place of `hidden`."""
    spans: Spans | None = None
    """Where the teacher has a tokenizer of its own: all is of spans then, at their last tokens."""

    @cached_property
    def logprob(self) -> Tensor:
        """`[N]` nats, of the taken tokens at the sampling temperature; 0 where absent."""
        return self._scored[0]

    @cached_property
    def entropy(self) -> Tensor:
        """`[N]` nats, at the sampling temperature; 0 where absent."""
        return self._scored[1]

    @property
    def is_scored(self) -> bool:
        """Whether log-probs and entropies have been computed."""
        return self.known is not None or "_scored" in vars(self)

    @cached_property
    def _scored(self) -> tuple[Tensor, Tensor]:
        if self.known is not None:
            return self.known
        here = self.present
        logprob, entropy = (v.new_zeros(len(here)).masked_scatter(here, v) for v in self.at(here))
        return logprob, entropy

    def at(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies `[n]` of some of the tokens of which a hidden state is there,
        `index` their places or a mask: nothing else is computed."""
        hidden, ids = self.hidden[index], self.target_ids[index]
        logprob, entropy = self.head.score(hidden, ids, self.temperature)
        return (logprob if self.spans is None else logprob + self.spans.others[index]), entropy

    def rows(self, index: Tensor | slice = slice(None)) -> Seen:
        """Of some of the tokens, or of all; all are computed first, and once."""
        return Seen(self.logprob[index], self.entropy[index], self.present[index])


@dataclass(frozen=True)
class Tokens:
    """Action tokens and their sequences; everything is indexed by the one or by the other."""

    BY_TOKEN: ClassVar = (
        "target_ids",
        "sequence",
        "position",
        "sampled_logprob",
        "earlier_logprob",
    )

    members: tuple[int, ...]
    """`[S]` places of the sequences among the trajectories that were packed."""
    group: Tensor
    """`[S]` int64, the same for the rollouts of one problem."""
    target_ids: Tensor
    """`[N]` int64, the taken tokens."""
    sequence: Tensor
    """`[N]` int64 in 0..S-1."""
    position: Tensor
    """`[N]` int64, index of the token in its response, from 0."""
    sampled_logprob: Tensor
    """`[N]` nats under the sampling policy; NaN where the token was written down, not sampled."""
    earlier_logprob: Tensor
    """`[N]` nats under the policy as it stood before the step's first update; NaN where no loss
    reads them, or where that policy is the trained one."""
    reward: Tensor
    """`[S]`."""
    advantage: Tensor
    """`[S]`."""
    pass_rate: Tensor
    """`[S]` in [0, 1]."""
    influence: Tensor
    """`[S]` in [-1, 1], 0 where nothing is known of it."""
    success: Tensor
    """`[S]` bool."""

    def rows(self, index: Tensor) -> Self:
        """Some of the tokens, of the same sequences."""
        return replace(self, **{name: getattr(self, name)[index] for name in self.BY_TOKEN})

    @property
    def tokens(self) -> int:
        return self.target_ids.numel()

    @property
    def sequences(self) -> int:
        return self.reward.numel()


@dataclass(frozen=True)
class Batch(Tokens):
    """One micro-batch: sequences that make one model input."""

    student: Context
    context: str = "student"
    """What stands before the responses: the student's own prompt, or that of the view so named."""


@dataclass(frozen=True)
class Update:
    """What one optimizer step did."""

    step: int
    learning_rate: float
    grad_norm: float
    tokens: int
    metrics: Mapping[str, float]
