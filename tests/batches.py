"""Small batches for the tests of the objective."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opd.privileged import Group, Privileged, Problem
from opd.types import Batch, Context, Head, Message, Prompt, Rollout, Scores, Seen, Verdict


def context(tokens: int) -> Context:
    """One padded row in which every position predicts a token."""
    return Context(
        input_ids=torch.zeros(1, max(1, tokens), dtype=torch.long),
        position_ids=torch.arange(max(1, tokens)).unsqueeze(0),
        boundaries=None,
        predict_at=torch.arange(tokens),
    )


def batch_of(
    lengths: Sequence[int],
    *,
    advantage: Sequence[float] | None = None,
    pass_rate: Sequence[float] | None = None,
    influence: Sequence[float] | None = None,
    success: Sequence[bool] | None = None,
    group: Sequence[int] | None = None,
    sampled_logprob: Tensor | None = None,
    earlier_logprob: Tensor | None = None,
) -> Batch:
    """A batch of sequences of the given lengths; what is not given is 0 or False, and NaN of
    an earlier policy."""
    sequences, tokens = len(lengths), sum(lengths)
    zeros = [0.0] * sequences
    return Batch(
        student=context(tokens),
        members=tuple(range(sequences)),
        group=torch.tensor(group or range(sequences)),
        target_ids=torch.zeros(tokens, dtype=torch.long),
        sequence=torch.repeat_interleave(
            torch.arange(sequences), torch.tensor(list(lengths), dtype=torch.long)
        ),
        position=torch.tensor([t for length in lengths for t in range(length)], dtype=torch.long),
        sampled_logprob=torch.zeros(tokens) if sampled_logprob is None else sampled_logprob,
        earlier_logprob=torch.full((tokens,), torch.nan)
        if earlier_logprob is None
        else earlier_logprob,
        reward=torch.tensor(zeros),
        advantage=torch.tensor(advantage or zeros),
        pass_rate=torch.tensor(pass_rate or zeros),
        influence=torch.tensor(influence or zeros),
        success=torch.tensor(success or [False] * sequences, dtype=torch.bool),
    )


def scores_of(
    tokens: int,
    *,
    logprob: Sequence[float] | None = None,
    entropy: Sequence[float] | None = None,
    present: Sequence[bool] | None = None,
) -> Scores:
    """Scores of a teacher over two vocabulary entries; what is not given is 0, and present."""
    zeros = [0.0] * tokens
    scores = Scores(
        hidden=torch.zeros(tokens, 1),
        head=Head(weight=torch.zeros(2, 1)),
        present=torch.tensor(present or [True] * tokens, dtype=torch.bool),
        target_ids=torch.zeros(tokens, dtype=torch.long),
        temperature=1.0,
    )
    # What stands there already is not computed from the head.
    vars(scores)["logprob"] = torch.tensor(logprob or zeros)
    vars(scores)["entropy"] = torch.tensor(entropy or zeros)
    return scores


def seen_of(logprob: Sequence[float]) -> Seen:
    """What a teacher that is present everywhere thinks of tokens; its entropy is 0."""
    found = torch.tensor(logprob)
    return Seen(found, torch.zeros_like(found), torch.ones_like(found, dtype=torch.bool))


def group(rewards: Sequence[float | None], lengths: Sequence[int] | None = None) -> Group:
    """Rollouts with the given rewards, None for a grader that failed; of one token each where no
    lengths are given."""
    prompt = Prompt(id="0", messages=(Message(role="user", content="1+1"),))
    rollouts = tuple(
        Rollout(
            prompt=prompt,
            prompt_ids=(1,),
            token_ids=(2,) * length,
            logprobs=(-0.5,) * length,
            policy_step=0,
            finish="stop",
            text="2",
        )
        for length in lengths or [1] * len(rewards)
    )
    verdicts = tuple(
        Verdict(status="no_verdict", reward=1e9)
        if reward is None
        else Verdict(status="pass" if reward > 0 else "fail", reward=reward)
        for reward in rewards
    )
    return Group(Problem(prompt=prompt, privileged=Privileged()), rollouts, verdicts)
