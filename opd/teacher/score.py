"""The teacher: parameters, views, and what they make of the responses that the student wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated

import torch
from pydantic import Field

from opd.config import part
from opd.learner.learner import Learner
from opd.learner.model import Causal, causal_of, head_of
from opd.parts import parts
from opd.privileged import Group, Problem, Trajectory
from opd.rollout.chat import Chat
from opd.teacher.alignment import Aligned, lay_spans, with_spans
from opd.teacher.exposure import Exposure, Fixed
from opd.teacher.sweep import sweep
from opd.teacher.view import View
from opd.teacher.weights import Foreign, Frozen, TeacherWeights
from opd.types import Batch, Head, Scores


@part
class Teacher:
    """Whose weights score a response, and in which contexts."""

    weights: TeacherWeights = field(default_factory=Frozen)
    views: dict[str, View] = field(default_factory=dict)
    weights_by_view: dict[str, TeacherWeights] = field(default_factory=dict)
    """Of the views that other weights score; a `Plain` view under `Frozen` is an anchor, under
    `Live` the student itself. Equal weights are held once."""
    exposure: Exposure = field(default_factory=Fixed)
    """What share of their reference views show at a step."""
    thinking: bool | None = None
    """What the views give to the chat template as `enable_thinking`; None is the student's mode,
    `model.thinking`."""
    thinking_by_view: dict[str, bool] = field(default_factory=dict)
    """Of the views that have a mode of their own."""
    tokens_per_batch: Annotated[int, Field(gt=0)] = 32768
    """Positions of one pass, padding included; a prompt that several responses share counts before
    each. Nothing is kept for gradients, so it may exceed the student's."""

    def __post_init__(self) -> None:
        for key in ("weights_by_view", "thinking_by_view"):
            unknown = next((view for view in getattr(self, key) if view not in self.views), None)
            if unknown is not None:
                known = ", ".join(self.views) or "none"
                raise ValueError(
                    f"{key} names the view {unknown!r}, but views holds {known}; add the view or "
                    "drop it there"
                )
        held = [self.weights]
        for view, weights in self.weights_by_view.items():
            self.weights_by_view[view] = next((h for h in held if h == weights), weights)
            held.append(weights)

    def weights_of(self, view: str) -> TeacherWeights:
        """Whose parameters score `view`."""
        return self.weights_by_view.get(view, self.weights)

    def thinking_of(self, view: str) -> bool | None:
        """In which mode `view` is read and what it shows is written; None is the student's."""
        return self.thinking_by_view.get(view, self.thinking)

    @property
    def held(self) -> tuple[TeacherWeights, ...]:
        """All weights, each once."""
        every = [self.weights, *self.weights_by_view.values()]
        return tuple({id(weights): weights for weights in every}.values())

    def open_views(self, problems: Sequence[Problem]) -> None:
        """Give the views the problems of the run, once, before any step."""
        for view in self.views.values():
            view.open(problems)

    def written(self, view: str) -> list[tuple[str, View]]:
        """(YAML path, view) of what the teacher writes in every step of what `view` shows."""
        within = parts(self.views[view])
        return [(at, found) for at, found in within if isinstance(found, View) and found.is_written]

    def setup(self, learner: Learner) -> None:
        """Open all weights, once, before any step or resume."""
        for weights in self.held:
            weights.setup(learner)

    def follow(self, learner: Learner) -> None:
        """Let all weights move after the optimizer has."""
        for weights in self.held:
            weights.follow(learner)

    def contexts(
        self, group: Group, index: int, views: Sequence[str], chat: Chat, reveal: float = 1.0
    ) -> dict[str, tuple[int, ...]]:
        """View name to prompt ids for one rollout; views with nothing to say are left out."""
        contexts: dict[str, tuple[int, ...]] = {}
        for name in views:
            view = self.views[name]
            reader = self.weights_of(name).reads(chat).in_mode(self.thinking_of(name))
            messages = view.messages(group, index, reveal)
            if messages is None:
                continue
            # A student that spells out a control token must not end the run.
            if view.quotes_rollouts and any(reader.control_token(m.content) for m in messages):
                continue
            contexts[name] = reader.prompt_ids(messages)
        return contexts

    @torch.no_grad()
    def score(
        self,
        trajectories: Sequence[Trajectory],
        batches: Sequence[Batch],
        views: Sequence[str],
        learner: Learner,
    ) -> list[dict[str, Scores]]:
        """For each of the batches that `trajectories` were packed into, the scores of its action
        tokens in each of `views`.

        The teacher goes over all of `trajectories` in passes of its own, whatever the batches are.
        """
        if not views:
            return [{} for _ in batches]
        seen: dict[str, list[Scores]] = {}
        for weights in self.held:
            mine = [view for view in views if self.weights_of(view) is weights]
            if not mine:
                continue
            recording = weights.recording
            if recording is not None:
                for view in mine:
                    seen[view] = [recording.scores(view, trajectories, b, learner) for b in batches]
                continue
            with weights.scoring(learner) as model:
                for view in mine:
                    seen[view] = self.score_view(model, trajectories, batches, view, learner)
        return [{view: seen[view][number] for view in views} for number in range(len(batches))]

    def score_view(
        self,
        model: Causal,
        trajectories: Sequence[Trajectory],
        batches: Sequence[Batch],
        view: str,
        learner: Learner,
    ) -> list[Scores]:
        """The scores of each batch's action tokens behind the prompts of `view`; what has no room
        in the model's context counts as absent."""
        head, weights = head_of(model), self.weights_of(view)
        scores = [unseen(batch, head, learner.temperature) for batch in batches]
        places: dict[int, tuple[int, slice]] = {}
        for number, batch in enumerate(batches):
            end = 0
            for member in batch.members:
                start, end = end, end + len(trajectories[member].rollout.token_ids)
                places[member] = number, slice(start, end)
        asked = [member for member in places if view in trajectories[member].views]
        responses = {member: trajectories[member].rollout.token_ids for member in asked}
        aligned: dict[int, Aligned] = {}
        if isinstance(weights, Foreign):
            scores = [with_spans(found, weights.shared, weights.row) for found in scores]
            aligned = weights.aligned({member: trajectories[member].rollout for member in asked})
            responses = {member: response.token_ids for member, response in aligned.items()}
            asked = list(aligned)
        # What the student has positions for may be too long for another model.
        longest = causal_of(model).config.max_position_embeddings
        prompts = {member: trajectories[member].views[view] for member in asked}
        asked = [m for m in asked if len(prompts[m]) + len(responses[m]) <= longest]
        found = sweep(
            model,
            [prompts[member] for member in asked],
            [responses[member] for member in asked],
            tokens_per_batch=self.tokens_per_batch,
            packing=any(batch.student.boundaries is not None for batch in batches),
        )
        with learner.recipe.autocast(learner.accelerator.device):
            for index, hidden in found:
                number, place = places[asked[index]]
                hidden = hidden.to(head.weight.dtype)
                if asked[index] in aligned:
                    lay_spans(scores[number], place.start, hidden, aligned[asked[index]])
                    continue
                scores[number].hidden[place] = hidden
                scores[number].present[place] = True
        return scores


def unseen(batch: Batch, head: Head, temperature: float) -> Scores:
    """The scores of a view that no sequence of the batch has."""
    targets = batch.target_ids
    width = head.weight.shape[1]
    hidden = torch.zeros(batch.tokens, width, device=targets.device, dtype=head.weight.dtype)
    present = torch.zeros_like(targets, dtype=torch.bool)
    return Scores(hidden, head, present, targets, temperature)
