"""All losses of a micro-batch in one pass, against full logits and autograd in float64."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from opd import product
from opd.head import Head, taken
from opd.learner import metrics
from opd.learner.rows import Rows, student_rows
from opd.objective.correction import TruncatedImportance
from opd.objective.divergence import JSD, ForwardKL, ReverseKL
from opd.objective.logits import Logits
from opd.objective.loss import (
    Distill,
    Likelihood,
    Loss,
    PolicyGradient,
    RowLoss,
    SampledReverseKL,
)
from opd.objective.schedule import Constant
from opd.objective.support import Full, Support, TopK
from opd.objective.target import AlignedMean, Interpolated, Target, Tempered
from opd.types import Batch, Scores, Spans
from tests.batches import batch_of

TOKENS, VOCABULARY, WIDTH = 11, 23, 6
TEMPERATURE = 1.3


@dataclass
class Case:
    """A batch, a student and two teachers in float64; the first shares the student's head."""

    hidden: Tensor
    head: Head
    batch: Batch
    scores: Mapping[str, Scores]
    scales: Mapping[str, Tensor]


def case(*names: str) -> Case:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ids = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    batch = batch_of([4, 7], advantage=[1.0, -0.5], sampled_logprob=-draw(TOKENS).abs() - 2)
    batch = Batch(**{**vars(batch), "target_ids": ids})
    head = Head((draw(VOCABULARY, WIDTH) / 2).requires_grad_(), draw(VOCABULARY))
    hidden = draw(TOKENS, WIDTH).requires_grad_()
    present = torch.ones(TOKENS, dtype=torch.bool)
    near, far = hidden.detach() + draw(TOKENS, WIDTH) / 3, draw(TOKENS, WIDTH)
    other = Head(draw(VOCABULARY, WIDTH) / 2)
    scores = {
        "near": Scores(near, head, present, ids, TEMPERATURE),
        "far": Scores(far, other, present, ids, TEMPERATURE),
    }
    scales = {name: torch.rand(TOKENS, generator=generator, dtype=torch.float64) for name in names}
    for number, scale in enumerate(scales.values()):
        scale[number::3] = 0
        scale[-1] = 0
    return Case(hidden, head, batch, scores, scales)


def run(given: Case, losses: Mapping[str, Loss]) -> tuple[Rows, list[Tensor]]:
    rows = student_rows(
        given.hidden, given.head, given.batch, given.scores, losses, given.scales, TEMPERATURE
    )
    rows.total.backward()
    found = [part.grad for part in (given.hidden, given.head.weight)]
    return rows, [part for part in found if part is not None]


def by_definition(given: Case, losses: Mapping[str, Loss]) -> tuple[Tensor, list[Tensor]]:
    """The same from the whole table of logits."""
    assert given.head.bias is not None
    student = Logits(given.hidden @ given.head.weight.T + given.head.bias)
    teachers = {
        view: Logits(
            (
                seen.hidden @ seen.head.weight.T + (0 if seen.head.bias is None else seen.head.bias)
            ).detach()
        )
        for view, seen in given.scores.items()
    }
    ids = given.batch.target_ids
    total = given.hidden.sum() * 0
    for name, loss in losses.items():
        if isinstance(loss, RowLoss):
            value, _ = loss.rows(student, ids, given.batch.sampled_logprob, teachers)
        else:
            logprob = taken(student.log_probs(TEMPERATURE), ids)
            value, _ = loss.tokens(logprob, given.batch, given.scores)  # pyright: ignore
        total = total + (given.scales[name] * value).sum()
    found = torch.autograd.grad(total, (given.hidden, given.head.weight))
    return total.detach(), list(found)


def assert_same(losses: Mapping[str, Loss]) -> Rows:
    given = case(*losses)
    reference, expected = by_definition(given, losses)
    rows, found = run(given, losses)
    logprob, _ = given.head.score(given.hidden, given.batch.target_ids, TEMPERATURE)
    torch.testing.assert_close(rows.logprob, logprob)
    torch.testing.assert_close(rows.total.detach(), reference, rtol=1e-6, atol=1e-9)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
    return rows


def near(**more: object) -> Distill:
    return Distill(target="near", temperature=TEMPERATURE, **more)  # pyright: ignore


@pytest.mark.parametrize(
    "losses",
    [
        {"distil": near(divergence=ReverseKL())},
        {"distil": near(divergence=JSD(), correction=TruncatedImportance(cap=3.0))},
        {"distil": near(divergence=JSD(), clip="token_scale"), "reinforce": PolicyGradient()},
        {"distil": near(divergence=ForwardKL(), support=TopK(size=5)), "imitate": Likelihood()},
        {
            "distil": near(divergence=ForwardKL(), support=TopK(size=5, rest="renormalise")),
            "reinforce": PolicyGradient(),
        },
        {
            "near": near(divergence=JSD()),
            "far": Distill(target="far", divergence=ReverseKL()),
            "sampled": SampledReverseKL(view="far"),
            "imitate": Likelihood(),
        },
        {"reinforce": PolicyGradient()},
        {"hot": Distill(target="near", divergence=JSD(), temperature=0.8)},
    ],
    ids=lambda losses: "+".join(losses),
)
def test_one_pass_is_the_sum_of_its_losses(losses: Mapping[str, Loss]) -> None:
    assert_same(losses)


@pytest.mark.parametrize(
    "target",
    [
        Tempered(view="near", temperature=Constant(value=0.7)),
        Interpolated(view="near", share=Constant(value=0.4)),
        Interpolated(view="near", share=Constant(value=0.4), start="far"),
        AlignedMean(views=("near", "far")),
    ],
    ids=lambda target: type(target).__name__,
)
@pytest.mark.parametrize("support", [Full(), TopK(size=5)], ids=lambda support: str(support))
def test_several_sides_make_one_target(target: Target, support: Support) -> None:
    loss = Distill(target=target, divergence=ForwardKL(), support=support, temperature=0.8)
    assert loss.comparison is None
    assert_same({"distil": loss, "far": Distill(target="far", divergence=JSD())})


def test_what_is_measured_beside_the_losses() -> None:
    """With the comparison by tables, and as autograd goes over the whole rows."""
    plain = {"distil": near(divergence=ReverseKL())}
    whole = {"distil": near(divergence=ReverseKL(), clip="entry_nonneg", clip_at=1e9)}
    compared = plain["distil"].comparison
    assert compared is not None and compared.divergence == ReverseKL()
    assert compared.view == "near" and compared.temperature == TEMPERATURE
    assert whole["distil"].comparison is None
    found = []
    for losses in (plain, whole):
        given = case(*losses)
        rows, _ = run(given, losses)
        logprob, entropy = given.head.score(given.hidden, given.batch.target_ids, TEMPERATURE)
        torch.testing.assert_close(rows.logprob, logprob)
        torch.testing.assert_close(rows.entropy, entropy)
        seen, counts = given.scores["near"], given.scales["distil"] != 0
        assert torch.equal(rows.counts, counts)
        teacher_logprob, teacher_entropy = rows.teachers["near"]
        torch.testing.assert_close(teacher_logprob[counts], seen.logprob[counts])
        torch.testing.assert_close(teacher_entropy[counts], seen.entropy[counts])
        found.append(rows)
    torch.testing.assert_close(found[0].losses["distil"], found[1].losses["distil"])


def test_tokens_that_count_nothing_get_no_gradient_but_are_measured() -> None:
    losses = {"distil": near(divergence=JSD())}
    given = case(*losses)
    rows, (gradient, _) = run(given, losses)
    idle = given.scales["distil"] == 0
    assert idle.any() and not gradient[idle].any() and gradient[~idle].any()
    assert bool((rows.logprob < 0).all()) and bool((rows.entropy > 0).all())
    assert not rows.losses["distil"][idle].any()


@pytest.mark.parametrize("beside", [Likelihood(), PolicyGradient()], ids=repr)
def test_an_infinite_loss_that_counts_nothing_does_no_harm(beside: Loss) -> None:
    losses = {"distil": Distill(target="far", divergence=ReverseKL(), temperature=TEMPERATURE)}
    losses = {**losses, "beside": beside}
    given = case(*losses)
    excluded = torch.zeros(VOCABULARY, dtype=torch.float64)
    excluded[2] = -torch.inf
    far = given.scores["far"]
    given.scores = {"far": replace(far, head=Head(far.head.weight, excluded))}
    given.scales["distil"][:] = 0
    given.scales["beside"][0] = 1
    rows, found = run(given, losses)
    assert bool(rows.total.isfinite()) and all(bool(part.isfinite().all()) for part in found)
    assert bool(rows.losses["distil"][0].isinf())


def test_renormalised_entries_are_all_that_is_read_of_a_teacher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = {"distil": near(divergence=ForwardKL(), support=TopK(size=2, rest="renormalise"))}
    given = case(*losses)
    widths: list[int] = []
    whole = product.scores

    def counted(rows: Tensor, weight: Tensor, *rest: object, **more: object) -> Tensor:
        widths.append(len(rows))
        return whole(rows, weight, *rest, **more)  # pyright: ignore

    monkeypatch.setattr(product, "scores", counted)
    rows, (_, gradient) = run(given, losses)
    counts = int((given.scales["distil"] != 0).sum())
    assert widths == [counts, TOKENS - counts]
    assert int(gradient.any(-1).sum()) <= 2 * counts
    assert rows.teachers == {}


def test_what_no_loss_reads_whole_is_compared_on_some_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One view is read in part, the other not at all: every fourth of the 11 tokens."""
    monkeypatch.setattr(metrics, "EVERY", 4)
    losses = {"distil": near(divergence=ForwardKL(), support=TopK(size=2, rest="renormalise"))}
    given = case(*losses)
    rows, _ = run(given, losses)
    totals: dict[str, float] = defaultdict(float)
    metrics.observe(rows, given.batch, given.scores, totals)
    for view, seen in given.scores.items():
        assert not seen.is_scored and totals[f"count:teacher_gap/{view}"] == 3
        expected = (seen.logprob - rows.logprob)[::4].sum().item()
        assert totals[f"sum:teacher_gap/{view}"] == pytest.approx(expected)
        assert totals[f"sum:teacher_entropy/{view}"] == pytest.approx(
            seen.entropy[::4].sum().item()
        )
        # The first response has 4 tokens, the second 7: places 0, 4 and 8.
        of_quarters = [totals[f"count:teacher_gap_by_quarter/{view}/{n}"] for n in (1, 2, 3, 4)]
        assert of_quarters == [2, 0, 1, 0]


def test_a_span_is_compared_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The student's -3 of a span of two tokens, to which the teacher gives log(1/2) - 0.5, and its
    -4 of one token, to which the teacher gives log(1/2)."""
    monkeypatch.setattr(metrics, "EVERY", 1)
    spans = Spans(
        length=torch.tensor([0, 2, 1]),
        others=torch.tensor([0.0, -0.5, 0.0]),
        shared=torch.tensor([[0, 0], [1, 1]]),
    )
    known, column = torch.ones(3, dtype=torch.bool), torch.zeros(3)
    plain = Head(weight=torch.zeros(2, 1))
    seen = Scores(
        torch.zeros(3, 1), plain, known, torch.zeros(3, dtype=torch.long), 1.0, spans=spans
    )
    logprob = torch.tensor([-1.0, -2.0, -4.0])
    rows = Rows(column.sum(), logprob, column, {}, {}, known, {})
    totals: dict[str, float] = defaultdict(float)
    metrics.observe(rows, batch_of([3]), {"foreign": seen}, totals)
    assert totals["count:teacher_gap/foreign"] == 2
    assert totals["sum:teacher_gap/foreign"] == pytest.approx(7 - 2 * math.log(2) - 0.5)


def test_a_token_loss_reads_no_hidden_states() -> None:
    """They are read once, to score the tokens, and never by the rows of a block."""
    losses = {"sampled": SampledReverseKL(view="far")}
    given = case(*losses)
    far = given.scores["far"]
    assert not far.logprob.isnan().any()
    given.scores = {"far": replace(far, hidden=far.hidden[:0])}
    vars(given.scores["far"]).update({name: vars(far)[name] for name in ("logprob", "_scored")})
    rows, _ = run(given, losses)
    assert bool(rows.losses["sampled"].isfinite().all())
