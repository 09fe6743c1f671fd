"""A teacher's scores on disk: what it thought of stored responses, for runs that open no teacher.

Legend: `N` tokens of some responses, end to end, `K` listed entries, `D` hidden width, `V`
vocabulary.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from opd.config import locate
from opd.errors import DataError
from opd.head import log_softmax
from opd.learner.batch import Ids
from opd.learner.learner import Learner
from opd.learner.model import head_of, weights_id
from opd.objective.loss import Distill, HiddenLoss, Loss, RowLoss, SequenceLoss
from opd.objective.support import TopK
from opd.privileged import Trajectory
from opd.rollout.chat import Chat
from opd.rows import replace_file, writing
from opd.types import Batch, Head, Listed, Scores

Form = Literal["token", "top", "hidden"]
"""What is kept of a token: `token` its log-prob and the entropy, `top` also the most probable
entries, `hidden` the hidden state, from which the whole row is rebuilt."""

HEADING, HEADS = "heading.json", "heads.safetensors"
TAUGHT_BY = "taught_by.json"
"""Beside a model's weights: hashes of the weights whose responses it has imitated."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heading:
    """What all scores of a recording have in common."""

    form: Form
    size: int
    """K; 0 where no entries are listed."""
    temperature: float
    chat: str
    """Hash of the tokenizer and chat template."""
    teachers: dict[str, str]
    """View to a hash of the weights that scored it."""
    views: dict[str, Any]
    """View to its settings, for a reader."""
    rollouts: str
    """SHA-256 of the file that holds the responses."""


@dataclass(frozen=True)
class Place:
    """Where a response's scores stand."""

    shard: Path
    start: int
    stop: int
    prompts: dict[str, str]
    """View to a hash of what the teacher read before the response."""


def hash_of(ids: Ids) -> str:
    """Of token ids."""
    return blake2b(json.dumps(ids).encode(), digest_size=16).hexdigest()


def begin(folder: Path, heading: Heading) -> None:
    """Make the recording, or go on with it. Raises DataError when `folder` holds another one."""
    path = folder / HEADING
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name, value in asdict(heading).items() if found.get(name) != value]
        if other:
            raise DataError(
                f"{folder}: holds scores with another {' and '.join(other)}; name a new folder"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: exists already; name a new folder or delete it")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(asdict(heading), indent=1))


def add(
    shard: Path,
    heading: Heading,
    trajectories: Sequence[Trajectory],
    scores: Sequence[Mapping[str, Scores]],
) -> None:
    """Write what each view says of each of the trajectories; with the first file of hidden states
    also the heads that turn them into rows again."""
    columns: dict[str, list[Tensor]] = {}
    for row in scores:
        for view, found in row.items():
            for name, values in kept(heading, found).items():
                columns.setdefault(f"{view}/{name}", []).append(values.cpu())
    heads = shard.parent / HEADS
    if heading.form == "hidden" and not heads.exists():
        add_heads(heads, {view: found.head for view, found in scores[0].items()})
    responses = [
        {
            "problem": trajectory.rollout.prompt.id,
            "response": hash_of(trajectory.rollout.token_ids),
            "tokens": len(trajectory.rollout.token_ids),
            "prompts": {view: hash_of(ids) for view, ids in trajectory.views.items()},
        }
        for trajectory in trajectories
    ]
    tensors = {name: torch.cat(parts) for name, parts in columns.items()}
    save_whole(tensors, shard, {"responses": json.dumps(responses)})


def kept(heading: Heading, found: Scores) -> dict[str, Tensor]:
    """Name to rows `[T, ...]` of what the form keeps of one response's scores."""
    columns = {"logprob": found.logprob, "entropy": found.entropy}
    if heading.form == "hidden":
        columns["hidden"] = found.hidden
    elif heading.form == "top":
        rows = log_softmax(found.head.logits(found.hidden), found.temperature)
        highest = rows.topk(min(heading.size, rows.shape[-1]))
        columns |= {"listed": highest.values, "ids": highest.indices.int()}
    return columns


def add_heads(path: Path, heads: Mapping[str, Head]) -> None:
    """Keep each view's head."""
    tensors: dict[str, Tensor] = {}
    softcaps = {view: head.softcap for view, head in heads.items()}
    for view, head in heads.items():
        tensors[f"{view}/weight"] = head.weight.detach().cpu().clone()
        if head.bias is not None:
            tensors[f"{view}/bias"] = head.bias.detach().cpu().clone()
    save_whole(tensors, path, {"softcaps": json.dumps(softcaps)})


def save_whole(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write `path` so that it is there whole or not at all."""
    staging = path.with_name(f".{path.name}")
    with writing(path):
        save_file(tensors, staging, metadata)
        staging.rename(path)


@dataclass(frozen=True)
class Recording:
    """An open recording."""

    folder: Path
    heading: Heading
    places: Mapping[str, Mapping[str, Sequence[Place]]]
    """Problem to response hash to where it stands, once for each prompt that it stands behind."""
    files: dict[Path, Any] = field(default_factory=dict)
    """Shards that have been read from."""

    @classmethod
    def open(cls, folder: Path) -> Recording:
        """Raises DataError when there is none."""
        try:
            heading = Heading(**json.loads((folder / HEADING).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{folder}: holds no scores ({error}); write them with `opd score --to {folder}`"
            ) from error
        places: dict[str, dict[str, list[Place]]] = {}
        for shard in sorted(folder.glob("scores-*.safetensors")):
            with safe_open(shard, "pt") as file:
                responses = json.loads(file.metadata()["responses"])
            start = 0
            for row in responses:
                place = Place(shard, start, start + row["tokens"], row["prompts"])
                places.setdefault(row["problem"], {}).setdefault(row["response"], []).append(place)
                start = place.stop
        return cls(folder, heading, places)

    def check(self, learner: Learner, scored_by: str | None = None) -> None:
        """Raise DataError when the run's chat, temperature or losses do not fit the scores, or
        other weights have given them than those with the hash `scored_by`."""
        model, teachers = learner.recipe, self.heading.teachers
        if scored_by is not None and {scored_by} != set(teachers.values()):
            found = ", ".join(f"{view} by {weights}" for view, weights in teachers.items())
            raise DataError(
                f"{self.folder}: teacher.weights.scored_by is {scored_by}, but it holds scores of "
                f"{found}; score again or correct it"
            )
        chat = Chat.open(locate(model.path), model.thinking)
        if chat.fingerprint != self.heading.chat:
            raise DataError(
                f"{self.folder}: scored with another tokenizer or chat template than "
                f"{model.path}'s; score again"
            )
        if learner.temperature != self.heading.temperature:
            raise DataError(
                f"{self.folder}: scored at temperature {self.heading.temperature:g}, but this run "
                f"samples at {learner.temperature:g}; score again or set sampling.temperature"
            )
        for name, term in learner.terms.items():
            mine = set(term.loss.views) & set(self.heading.views)
            if mine and not self.suffices(term.loss):
                raise DataError(
                    f"{self.folder}: its scores of the form {self.heading.form!r} hold less than "
                    f"terms.{name}.loss reads; score again with `--form hidden`"
                )
        warn_of_another_teacher(model.path, self.heading)

    def suffices(self, loss: Loss) -> bool:
        """Whether all that a loss reads of a teacher was kept."""
        read = (loss.inner or loss) if isinstance(loss, SequenceLoss) else loss
        if self.heading.form == "hidden" or not isinstance(read, RowLoss | HiddenLoss):
            return True
        return (
            isinstance(read, Distill)
            and isinstance(read.target, str)
            and isinstance(read.support, TopK)
            and read.support.chosen_by == "teacher"
            and read.support.size <= self.heading.size
            and read.temperature == self.heading.temperature
        )

    @cached_property
    def heads(self) -> Mapping[str, Head]:
        """View to its teacher's head."""
        path = self.folder / HEADS
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            softcaps = json.loads(file.metadata()["softcaps"])
        return {
            view: Head(tensors[f"{view}/weight"], tensors.get(f"{view}/bias"), softcap)
            for view, softcap in softcaps.items()
        }

    def scores(
        self, view: str, trajectories: Sequence[Trajectory], batch: Batch, learner: Learner
    ) -> Scores:
        """What was recorded of the batch's action tokens. Raises DataError for a response that was
        not scored behind this view's prompt."""
        device = batch.target_ids.device
        present = torch.zeros_like(batch.target_ids, dtype=torch.bool)
        columns: dict[str, Tensor] = {}
        end = 0
        for member in batch.members:
            start, end = end, end + len(trajectories[member].rollout.token_ids)
            if view not in trajectories[member].views:
                continue
            for name, values in self.read(view, trajectories[member]).items():
                if name not in columns:
                    columns[name] = values.new_zeros((batch.tokens, *values.shape[1:]))
                columns[name][start:end] = values
            present[start:end] = True
        columns = {name: values.to(device) for name, values in columns.items()}
        head = head_of(learner.model)
        nothing = torch.zeros(batch.tokens, device=device)
        # A loss of rows may be asked for other terms' tokens where no response has the view.
        width = 0 if columns else head.weight.shape[1]
        scores = Scores(
            hidden=torch.zeros(batch.tokens, width, device=device),
            head=head,
            present=present,
            target_ids=batch.target_ids,
            temperature=learner.temperature,
            known=(columns.get("logprob", nothing), columns.get("entropy", nothing)),
        )
        if "hidden" in columns:
            own = self.heads[view]
            moved = Head(
                own.weight.to(device),
                None if own.bias is None else own.bias.to(device),
                own.softcap,
            )
            return replace(scores, hidden=columns["hidden"], head=moved, known=None)
        if "listed" in columns:
            return replace(scores, listed=Listed(columns["ids"].long(), columns["listed"]))
        return scores

    def read(self, view: str, trajectory: Trajectory) -> dict[str, Tensor]:
        """Name to rows `[T, ...]` of one response."""
        place = self.place(view, trajectory)
        if place.shard not in self.files:
            self.files[place.shard] = safe_open(place.shard, "pt").__enter__()
        file = self.files[place.shard]
        prefix = f"{view}/"
        return {
            name.removeprefix(prefix): file.get_slice(name)[place.start : place.stop]
            for name in file.keys()  # noqa: SIM118
            if name.startswith(prefix)
        }

    def place(self, view: str, trajectory: Trajectory) -> Place:
        """Where the scores of a response behind a view's prompt stand."""
        rollout = trajectory.rollout
        where = f"{self.folder}: problem {rollout.prompt.id}"
        if view not in self.heading.views:
            known = ", ".join(self.heading.views)
            raise DataError(f"{where}: the view {view!r} was not scored, only {known}; score again")
        if rollout.prompt.id not in self.places:
            raise DataError(f"{where}: none of its responses was scored; score these rollouts")
        found = self.places[rollout.prompt.id].get(hash_of(rollout.token_ids))
        if found is None:
            raise DataError(f"{where}: other response tokens were scored; score these rollouts")
        read = hash_of(trajectory.views[view])
        place = next((each for each in found if each.prompts.get(view) == read), None)
        if place is None:
            raise DataError(
                f"{where}: the view {view!r} reads another prompt than the one that was scored; "
                "take the view's old wording or score again"
            )
        return place


def imitated(student: str) -> set[str]:
    """Hashes of the weights whose responses the model at that path has imitated."""
    path = Path(locate(student)) / TAUGHT_BY
    return set(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else set()


def note_imitated(folder: Path, student: str, authors: frozenset[str]) -> None:
    """Note beside the weights in `folder`, which `student` has become, whose responses they have
    imitated: those of `authors` but for its own, and what it had imitated before."""
    others = authors - {weights_id(student)} if authors else authors
    if known := others | imitated(student):
        replace_file(folder / TAUGHT_BY, json.dumps(sorted(known)))


def warn_of_another_teacher(student: str, heading: Heading) -> None:
    """Say so when the student has imitated other models than the one that scored: what the two
    disagree about pulls on every step (arXiv 2604.13010)."""
    known = imitated(student)
    if known and set(heading.teachers.values()) - known:
        logger.warning(
            "%s: it has imitated responses of other weights than those that scored; score with the "
            "model that wrote them, or imitate this one first",
            student,
        )
