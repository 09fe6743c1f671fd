"""Numbers of arXiv 2402.12030 and of the alignment that TRL gave it, and what they come down to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from opd.config import build, load_recipe
from opd.errors import RecipeError
from opd.head import Head
from opd.learner.batch import pack
from opd.learner.learner import Learner
from opd.learner.spans import span_losses
from opd.objective.divergence import JSD
from opd.objective.loss import Distill, Loss
from opd.objective.span_loss import MatchedDistance, SortedDistance, SpanLoss
from opd.objective.term import Term
from opd.privileged import Trajectory
from opd.recipe import Recipe
from opd.rollout.chat import Chat
from opd.teacher.alignment import grouped
from opd.teacher.score import Teacher
from opd.teacher.view import Plain
from opd.teacher.weights import External, Foreign, TeacherWeights
from opd.types import Message, Prompt, Rollout, Scores, Spans, Verdict
from tests.conftest import SPECIAL, TEMPLATE, character_tokenizer, save_random_model
from tests.students import distance, gradients, open_student, recipe_terms

NONE = torch.zeros(0, 2, dtype=torch.long)


def rows(*probabilities: tuple[float, ...]) -> Tensor:
    return torch.tensor(probabilities).log()


def test_sorted_probabilities_are_compared_and_the_rest_padded() -> None:
    loss = SortedDistance(view="plain").spans(rows((0.5, 0.3, 0.2)), rows((0.6, 0.4)), NONE)
    assert loss.tolist() == pytest.approx([0.4], abs=1e-6)


def test_the_same_probabilities_for_opposite_tokens_cost_nothing() -> None:
    """The known weakness: sorting forgets who is who. Shared entries remember."""
    student = rows((0.9, 0.1)).requires_grad_()
    loss = SortedDistance(view="plain").spans(student, rows((0.1, 0.9)), NONE)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.item() == 0.0 and gradient.abs().sum() == 0.0
    both = torch.tensor([(0, 0), (1, 1)])
    assert MatchedDistance(view="plain").spans(student, rows((0.1, 0.9)), both).item() > 0.3


def test_byte_ends_make_the_smallest_groups_that_both_share() -> None:
    assert grouped([2, 5, 6, 9], [3, 5, 9]) == [
        (range(0, 2), range(0, 2)),
        (range(2, 4), range(2, 3)),
    ]


@dataclass(frozen=True)
class Taken(SpanLoss):
    """The probability of one entry."""

    view: str
    entry: int

    def spans(self, student: Tensor, teacher: Tensor, shared: Tensor) -> Tensor:
        return student[:, self.entry].exp()


@pytest.mark.parametrize(("row", "entry"), [("last", 1), ("first", 0)])
def test_a_span_is_as_likely_as_its_tokens_together(
    row: Literal["last", "first"], entry: int
) -> None:
    """p(a) = .5 and p(b | a) = .4 make .2, and the gradient reaches both, whichever's row is kept:
    b's behind a, or a's before b."""
    hidden = rows((0.5, 0.3, 0.2), (0.1, 0.4, 0.5)).requires_grad_()
    head = Head(torch.eye(3))
    spans = Spans(torch.tensor([0, 2]), torch.zeros(2), NONE, row)
    scores = Scores(torch.zeros(2, 3), head, torch.ones(2).bool(), torch.zeros(2), 1.0, spans=spans)
    targets, loss = torch.tensor([0, 1]), Taken("plain", entry)
    found = span_losses(loss, hidden, head, targets, scores, torch.tensor([1]), temperature=1.0)
    assert found.tolist() == pytest.approx([0.2], abs=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    # d(p q) = p q (1 - p) in the logit of a, and p q (1 - q) in that of b.
    assert gradient[0].tolist() == pytest.approx([0.1, -0.06, -0.04], abs=1e-6)
    assert gradient[1].tolist() == pytest.approx([-0.02, 0.12, -0.1], abs=1e-6)


@pytest.mark.parametrize(
    ("row", "merged"), [("last", (0.05, 0.2, 0.25)), ("first", (0.2, 0.12, 0.08))]
)
def test_what_else_the_span_may_have_been(
    row: Literal["last", "first"], merged: tuple[float, ...]
) -> None:
    """.5 (.1, .4, .5) if its end were another, .4 (.5, .3, .2) if its beginning were."""
    hidden, head = rows((0.5, 0.3, 0.2), (0.1, 0.4, 0.5)), Head(torch.eye(3))
    spans = Spans(torch.tensor([0, 2]), torch.zeros(2), NONE, row)
    scores = Scores(torch.zeros(2, 3), head, torch.ones(2).bool(), torch.zeros(2), 1.0, spans=spans)
    for entry, probability in enumerate(merged):
        targets, loss = torch.tensor([0, 1]), Taken("plain", entry)
        found = span_losses(loss, hidden, head, targets, scores, torch.tensor([1]), temperature=1.0)
        assert found.tolist() == pytest.approx([probability], abs=1e-6)


def test_the_shared_slices_are_compared_as_they_are() -> None:
    """JSD of (.6, .1) and (.2, .3) entry by entry, and |.3 - .5| on the rest."""
    student, teacher = rows((0.6, 0.1, 0.3)), rows((0.5, 0.3, 0.2))
    shared = torch.tensor([(0, 2), (1, 1)])
    p, q = torch.tensor([0.6, 0.1]), torch.tensor([0.2, 0.3])
    m = (p + q) / 2
    jsd = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    fixed = MatchedDistance(view="plain", matched_weight=0.25)
    expected = 0.25 * jsd.item() + 0.75 * 0.2
    assert fixed.spans(student, teacher, shared).tolist() == pytest.approx([expected], abs=1e-6)
    # Two of the teacher's three entries are shared.
    expected = 2 / 3 * jsd.item() + 1 / 3 * 0.2
    found = MatchedDistance(view="plain").spans(student, teacher, shared)
    assert found.tolist() == pytest.approx([expected], abs=1e-6)


# On a real small batch.


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """The characters of the students' tokenizer under other ids, and pairs of digits."""
    characters = [token for token in character_tokenizer().get_vocab() if token not in SPECIAL]
    pairs = [(first, second) for first in "123" for second in "0123456789"]
    tokens = [*sorted(characters, reverse=True), *("".join(pair) for pair in pairs), *SPECIAL]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("foreign") / "model", merging_tokenizer())


def written(chat: Chat, teacher: Chat, texts: tuple[str, ...]) -> list[Trajectory]:
    """Answers as if they had been sampled; the last was cut off."""
    made: list[Trajectory] = []
    for number, text in enumerate(texts):
        prompt = Prompt(f"p{number}", (Message("user", f"say {number}"),))
        ids = chat.response_ids(text)
        ids = ids if number < len(texts) - 1 else ids[:-1]
        rollout = Rollout(
            prompt=prompt,
            prompt_ids=chat.prompt_ids(prompt.messages),
            token_ids=ids,
            logprobs=(-1.0,) * len(ids),
            policy_step=0,
            finish="stop" if number < len(texts) - 1 else "length",
            text=text,
        )
        views = {"plain": teacher.prompt_ids(prompt.messages)}
        made.append(Trajectory(rollout, Verdict("pass", 1.0), 0.0, 1.0, views))
    return made


def updated(
    folder: Path,
    loss: Loss,
    weights: TeacherWeights,
    *,
    tokens_per_batch: int = 4096,
    texts: tuple[str, ...] = ("12 and 30", "1", "a321b", "x=9;12"),
) -> tuple[Learner, Mapping[str, float], list[dict[str, Scores]]]:
    """The student after one update on fixed answers, what it reported, and the teacher's scores."""
    learner = open_student(folder, {"distil": Term(loss=loss)})
    teacher = Teacher(weights=weights, views={"plain": Plain()})
    teacher.setup(learner)
    chat = Chat.open(str(folder))
    trajectories = written(chat, weights.reads(chat), texts)
    batches = pack(
        trajectories, tokens_per_batch=tokens_per_batch, packing=False, pad_id=chat.pad_id
    )
    scores = teacher.score(trajectories, batches, ("plain",), learner)
    return learner, learner.update(batches, scores, 0).metrics, scores


def test_with_one_tokenizer_the_shared_part_is_plain_distillation(
    tiny_model_dir: Path, tied_model_dir: Path
) -> None:
    divergence = JSD(teacher_weight=0.3)
    spans = MatchedDistance(view="plain", divergence=divergence, matched_weight=1.0)
    plain = Distill(target="plain", divergence=divergence)
    path = str(tied_model_dir)
    mine, found, _ = updated(tiny_model_dir, spans, Foreign(path=path))
    theirs, expected, _ = updated(tiny_model_dir, plain, External(path=path))
    assert found["loss/distil"] == pytest.approx(expected["loss/distil"], rel=1e-5)
    assert distance(gradients(mine), gradients(theirs)) < 1e-5
    unweighted, loss, _ = updated(
        tiny_model_dir, replace(spans, matched_weight=None), Foreign(path=path)
    )
    assert loss["loss/distil"] == pytest.approx(expected["loss/distil"], rel=1e-5)
    assert distance(gradients(unweighted), gradients(theirs)) < 1e-5


@pytest.mark.parametrize("row", ["last", "first"])
@pytest.mark.parametrize("loss", [SortedDistance(view="plain"), MatchedDistance(view="plain")])
def test_any_split_gives_the_same_update(
    tiny_model_dir: Path, foreign: Path, loss: SpanLoss, row: Literal["last", "first"]
) -> None:
    weights = Foreign(path=str(foreign), row=row)
    whole, found, _ = updated(tiny_model_dir, loss, weights)
    cut, expected, scores = updated(tiny_model_dir, loss, weights, tokens_per_batch=1)
    assert len(scores) == 4 and found["loss/distil"] > 0
    assert found["loss/distil"] == pytest.approx(expected["loss/distil"], rel=1e-5)
    assert distance(gradients(whole), gradients(cut)) < 1e-5


@pytest.mark.parametrize("row", ["last", "first"])
def test_a_span_of_two_tokens_here_and_one_there_by_hand(
    tiny_model_dir: Path, foreign: Path, row: Literal["last", "first"]
) -> None:
    """The answer "12", cut off before its end: one span."""
    loss = SortedDistance(view="plain")
    learner = open_student(tiny_model_dir, {"distil": Term(loss=loss)})
    student, teacher = Chat.open(str(tiny_model_dir)), Chat.open(str(foreign))
    (trajectory,) = written(student, teacher, ("12",))
    rollout, theirs = trajectory.rollout, Qwen3ForCausalLM.from_pretrained(foreign)
    with torch.no_grad():
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
        own = learner.model(input_ids=ids).logits[0, -3:-1].softmax(-1)
        other = theirs(input_ids=torch.tensor([trajectory.views["plain"]])).logits[0, -1]
    first, last = rollout.token_ids
    merged = own[0, first] * own[1] if row == "last" else own[0] * own[1, last]
    sides = [side.sort(descending=True).values for side in (merged, other.softmax(-1))]
    width = max(map(len, sides))
    mine, other = (torch.nn.functional.pad(side, (0, width - len(side))) for side in sides)
    weights = Foreign(path=str(foreign), row=row)
    _, found, _ = updated(tiny_model_dir, loss, weights, texts=("12",))
    assert found["loss/distil"] == pytest.approx((mine - other).abs().sum().item(), rel=1e-5)


def test_spans_stand_at_their_last_tokens(tiny_model_dir: Path, foreign: Path) -> None:
    loss = SortedDistance(view="plain")
    _, _, scores = updated(tiny_model_dir, loss, Foreign(path=str(foreign)), tokens_per_batch=1)
    spans = [batch["plain"].spans for batch in scores]
    # "12" and "30" are one token there, in "321" "21" is; the last answer has no end.
    assert sorted(one.length.tolist() for one in spans if one is not None) == [
        [0, 2, 1, 1, 1, 1, 1, 0, 2, 1],
        [1, 1],
        [1, 1, 0, 2, 1, 1],
        [1, 1, 1, 1, 0, 2],
    ]
    present = [batch["plain"].present for batch in scores]
    assert sum(int(one.sum()) for one in present) == 20
    alone = Foreign(path=str(foreign), spans="single")
    _, _, scores = updated(tiny_model_dir, loss, alone, tokens_per_batch=1)
    assert sum(int(batch["plain"].present.sum()) for batch in scores) == 16


def test_where_spans_are_of_one_token_both_rows_are_the_same(
    tiny_model_dir: Path, foreign: Path
) -> None:
    """And the recipe is the method's; where they are longer it is not."""
    assert recipe_terms("uld_observed") == recipe_terms("uld")
    weights = build(Recipe, load_recipe("uld_observed")).teacher.weights
    assert isinstance(weights, Foreign) and weights.row == "first"
    loss = SortedDistance(view="plain")
    updates = {
        (spans, row): gradients(
            updated(tiny_model_dir, loss, Foreign(path=str(foreign), spans=spans, row=row))[0]
        )
        for spans in ("all", "single")
        for row in ("last", "first")
    }
    assert distance(updates["single", "first"], updates["single", "last"]) < 1e-6
    assert distance(updates["all", "first"], updates["all", "last"]) > 1e-3


def test_a_foreign_teacher_and_a_loss_of_spans_need_each_other() -> None:
    distilled = "terms.distil.loss={name: Distill, target: plain, divergence: JSD}"
    for change in ("teacher.weights=Frozen", distilled):
        with pytest.raises(RecipeError, match="need each other"):
            build(Recipe, load_recipe("uld", [change]))
