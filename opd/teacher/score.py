"""The teacher: parameters, views, and one pass without gradients over what the student wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

import torch

from opd.config import part
from opd.learner.learner import Learner
from opd.learner.model import Causal, head_of, hidden_states
from opd.privileged import Group
from opd.rollout.chat import Chat
from opd.teacher.view import View
from opd.teacher.weights import Frozen, TeacherWeights
from opd.types import Batch, Context, Scores


@part
class Teacher:
    """Whose weights score a response, and in which contexts."""

    weights: TeacherWeights = field(default_factory=Frozen)
    views: dict[str, View] = field(default_factory=dict)

    def contexts(
        self, group: Group, index: int, views: Sequence[str], chat: Chat
    ) -> dict[str, tuple[int, ...]]:
        """View name to prompt ids for one rollout; views with nothing to say are left out."""
        contexts: dict[str, tuple[int, ...]] = {}
        for name in views:
            view = self.views[name]
            messages = view.messages(group, index)
            if messages is None:
                continue
            # A student that spells out a control token must not end the run.
            if view.quotes_rollouts and any(chat.control_token(m.content) for m in messages):
                continue
            contexts[name] = chat.prompt_ids(messages)
        return contexts

    @torch.no_grad()
    def score(
        self, batches: Sequence[Batch], views: Sequence[str], learner: Learner
    ) -> list[dict[str, Scores]]:
        """For each batch, the scores of its action tokens in each of `views`."""
        if not views:
            return [{} for _ in batches]
        with self.weights.scoring(learner) as model:
            return [
                {view: score_view(model, batch, view, learner) for view in views}
                for batch in batches
            ]


def score_view(model: Causal, batch: Batch, view: str, learner: Learner) -> Scores:
    """One no-grad pass of `model` over the responses of `batch` behind the prompts of `view`."""
    head = head_of(model)
    context = batch.views.get(view) or nowhere(batch)
    hidden = torch.zeros(
        batch.tokens, head.weight.shape[1], device=batch.target_ids.device, dtype=head.weight.dtype
    )
    logprob, entropy = hidden.new_zeros(batch.tokens), hidden.new_zeros(batch.tokens)
    here = context.present
    if here.any():
        seen = Context(
            context.input_ids,
            context.position_ids,
            context.boundaries,
            context.predict_at[here],
            here[here],
        )
        with learner.recipe.autocast(learner.accelerator.device):
            hidden[here] = hidden_states(model, seen).to(hidden.dtype)
        scored = head.score(hidden[here], batch.target_ids[here], learner.temperature)
        logprob, entropy = logprob.float(), entropy.float()
        logprob[here], entropy[here] = scored
    return Scores(hidden, head, logprob, entropy, here)


def nowhere(batch: Batch) -> Context:
    """The context of a view that no sequence of the batch has."""
    nothing = batch.target_ids.new_zeros((0, 0))
    absent = torch.zeros_like(batch.target_ids)
    return Context(nothing, nothing, None, absent, absent.bool())
