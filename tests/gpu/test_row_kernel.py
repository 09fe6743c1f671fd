"""The row kernel against automatic differentiation in float64: on a GPU, or with TRITON_INTERPRET=1
on a CPU, which is how tests/unit/test_row_kernel.py runs this file."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opd.learner.row_kernel import BLOCK, FORMS, Statistics, measure, pull_, supported
from opd.learner.row_pairs import RowPairs
from opd.objective.divergence import (
    JSD,
    Divergence,
    ForwardKL,
    HeldSkewReverseKL,
    Renyi,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(),
        reason="needs a CUDA device, or TRITON_INTERPRET=1",
    ),
]
on_a_gpu = pytest.mark.skipif(INTERPRETED, reason="a real vocabulary is for a real device")

EVERY = (
    ForwardKL(),
    ReverseKL(),
    JSD(),
    JSD(teacher_weight=0.1),
    SkewKL(),
    SkewReverseKL(),
    HeldSkewReverseKL(),
    TotalVariation(),
)
ENTRIES = BLOCK + 77
"""No multiple of the block."""
MASKED = (0, 5, BLOCK - 1, BLOCK, ENTRIES - 1)


@dataclass(frozen=True)
class Case:
    """Rows to compare, and what pulls at them."""

    logits: Tensor
    other: Tensor
    target_ids: Tensor
    divergence_scale: Tensor
    taken_scale: Tensor
    difference: bool
    temperature: float = 1.0
    softcap: float | None = None

    def pairs(self, divergence: Divergence, logits: Tensor | None = None) -> RowPairs:
        """The rows, or others in place of the logits, as the kernel takes them."""
        return RowPairs(
            student=self.logits if logits is None else logits,
            teacher=self.other,
            target_ids=self.target_ids,
            divergence=divergence,
            temperature=self.temperature,
            is_difference=self.difference,
            softcap=self.softcap,
        )


def draw(
    *,
    difference: bool,
    temperature: float = 1.0,
    softcap: float | None = None,
    rows: int = 2,
    entries: int = ENTRIES,
    gap: float = 0.7,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Random rows without excluded entries; the first row counts no divergence."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE)

    logits, apart = 3 * normal(rows, entries), gap * normal(rows, entries)
    divergence_scale = 0.5 + normal(rows).abs()
    divergence_scale[0] = 0
    return Case(
        logits=logits.to(dtype),
        other=(apart if difference else logits + apart).to(dtype),
        target_ids=torch.randint(1, 5, (rows,), generator=generator, device=DEVICE),
        divergence_scale=divergence_scale,
        taken_scale=normal(rows),
        difference=difference,
        temperature=temperature,
        softcap=softcap,
    )


def run(case: Case, divergence: Divergence) -> tuple[Statistics, Tensor]:
    """What the kernel measures, and its gradient in place of a copy of the logits."""
    statistics = measure(case.pairs(divergence))
    gradient = torch.empty_strided(
        case.logits.shape, case.logits.stride(), dtype=case.logits.dtype, device=DEVICE
    ).copy_(case.logits)
    pairs = case.pairs(divergence, gradient)
    pull_(pairs, statistics, case.divergence_scale, case.taken_scale)
    return statistics, gradient


def expected(case: Case, divergence: Divergence) -> tuple[Statistics, Tensor]:
    """The same in float64 by automatic differentiation."""
    logits = case.logits.double().requires_grad_()
    other = case.other.double()
    teacher = logits.detach() + other if case.difference else other

    def log_probs(raw: Tensor) -> Tensor:
        bent = raw if case.softcap is None else case.softcap * (raw / case.softcap).tanh()
        return (bent / case.temperature).log_softmax(-1)

    def entropy(table: Tensor) -> Tensor:
        return torch.distributions.Categorical(probs=table.exp()).entropy()

    student, target = log_probs(logits), log_probs(teacher)
    taken = [table.gather(-1, case.target_ids[:, None]).squeeze(-1) for table in (student, target)]
    distance = divergence(student, target)
    counted = case.divergence_scale != 0
    loss = (case.divergence_scale * distance)[counted].sum() + (case.taken_scale * taken[0]).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    nothing = torch.empty(0)
    found = Statistics(
        divergence=distance.detach(),
        logprob=taken[0].detach(),
        entropy=entropy(student.detach()),
        teacher_logprob=taken[1],
        teacher_entropy=entropy(target),
        normaliser=nothing,
        shift=nothing,
        pull_total=nothing,
    )
    return found, gradient


def agree(case: Case, divergence: Divergence, tolerance: float = 1e-5) -> None:
    """Values within `tolerance`, float32 gradients within that of each row's length, others within
    the rounding of their type entry by entry."""
    found, gradient = run(case, divergence)
    wanted, slope = expected(case, divergence)
    for name in ("divergence", "logprob", "entropy", "teacher_logprob", "teacher_entropy"):
        torch.testing.assert_close(
            getattr(found, name).double(),
            getattr(wanted, name),
            rtol=tolerance,
            atol=tolerance / 10,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    assert gradient.dtype == case.logits.dtype
    error = (gradient.double() - slope).abs()
    largest = slope.abs().amax(-1, keepdim=True)
    if case.logits.dtype == torch.float32:
        assert (error.norm(dim=-1) <= tolerance * slope.norm(dim=-1)).all(), error.amax(-1)
    else:
        rounding = torch.finfo(case.logits.dtype).eps
        assert (error <= rounding * slope.abs() + 1e-6 * largest).all(), error.amax(-1)


def masked(case: Case) -> Case:
    """Several entries excluded on both sides."""
    logits, other = case.logits.clone(), case.other.clone()
    logits[:, MASKED] = -torch.inf
    if not case.difference:
        other[:, MASKED] = -torch.inf
    return replace(case, logits=logits, other=other)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_values_and_gradients(
    divergence: Divergence, temperature: float, difference: bool, softcap: float | None
) -> None:
    case = draw(difference=difference, temperature=temperature, softcap=softcap)
    agree(masked(case), divergence)


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_bfloat16_within_its_rounding(divergence: Divergence, difference: bool) -> None:
    agree(masked(draw(difference=difference, dtype=torch.bfloat16)), divergence)


@pytest.mark.parametrize(
    ("divergence", "nats", "slope"),
    [
        (ForwardKL(), 0.1927448, -0.3),
        (ReverseKL(), 0.2231436, -0.3465736),
        (JSD(), 0.0506718, -0.0773799),
        (SkewKL(skew=0.1), 0.1585047, -0.2438780),
        (SkewReverseKL(skew=0.1), 0.1723732, -0.2639637),
        (HeldSkewReverseKL(skew=0.1), 0.1723732, -0.3020778),
        (TotalVariation(), 0.3, -0.25),
    ],
    ids=repr,
)
def test_two_entries_by_hand(divergence: Divergence, nats: float, slope: float) -> None:
    """A fair coin pulled toward one of 0.8; the two slopes of a pair are opposite."""
    case = Case(
        logits=torch.zeros(1, 2, device=DEVICE),
        other=torch.tensor([[0.8, 0.2]], device=DEVICE).log(),
        target_ids=torch.zeros(1, dtype=torch.long, device=DEVICE),
        divergence_scale=torch.ones(1, device=DEVICE),
        taken_scale=torch.zeros(1, device=DEVICE),
        difference=False,
    )
    found, gradient = run(case, divergence)
    assert found.divergence.item() == pytest.approx(nats, abs=1e-6)
    assert gradient[0].tolist() == pytest.approx([slope, -slope], abs=1e-6)
    assert found.logprob.item() == pytest.approx(-0.6931472, abs=1e-6)
    assert found.teacher_logprob.item() == pytest.approx(-0.2231436, abs=1e-6)
    assert found.entropy.item() == pytest.approx(0.6931472, abs=1e-6)
    assert found.teacher_entropy.item() == pytest.approx(0.5004024, abs=1e-6)


def test_the_taken_token_alone() -> None:
    case = draw(difference=False, temperature=1.7, softcap=5.0)
    agree(replace(case, divergence_scale=torch.zeros_like(case.divergence_scale)), ForwardKL())


@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_rows_of_scale_zero_get_exactly_nothing(divergence: Divergence) -> None:
    case = draw(difference=False)
    case = replace(case, taken_scale=torch.zeros_like(case.taken_scale))
    _, gradient = run(case, divergence)
    assert (gradient[0] == 0).all()
    assert gradient[1:].any(-1).all()


@pytest.mark.parametrize("difference", [False, True])
def test_rows_of_a_wider_table(difference: bool) -> None:
    wide = draw(difference=difference, rows=6, entries=ENTRIES + 13)
    before = wide.logits.clone()
    window = (slice(None, None, 2), slice(3, 3 + ENTRIES))
    case = replace(
        wide,
        logits=wide.logits[window],
        other=wide.other[window],
        target_ids=wide.target_ids[::2].contiguous(),
        divergence_scale=wide.divergence_scale[::2],
        taken_scale=wide.taken_scale[::2],
    )
    agree(case, JSD())
    pairs = case.pairs(JSD())
    pull_(pairs, measure(pairs), case.divergence_scale, case.taken_scale)
    written = torch.zeros_like(before, dtype=torch.bool)
    written[window] = True
    assert torch.equal(wide.logits[~written], before[~written]), "wrote beside its rows"
    assert not torch.equal(wide.logits, before)


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_agreement_is_exactly_zero(divergence: Divergence, difference: bool) -> None:
    case = masked(draw(difference=difference, gap=0.0))
    case = replace(case, taken_scale=torch.zeros_like(case.taken_scale))
    found, gradient = run(case, divergence)
    assert (found.divergence == 0).all()
    assert (gradient == 0).all()
    assert torch.equal(found.logprob, found.teacher_logprob)


@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_an_entry_that_only_the_teacher_excludes(divergence: Divergence) -> None:
    case = draw(difference=False)
    other = case.other.clone()
    other[:, 9] = -torch.inf
    case = replace(case, other=other)
    if isinstance(divergence, ReverseKL):
        found, gradient = run(case, divergence)
        assert (found.divergence == torch.inf).all()
        assert gradient[0].isfinite().all(), "a row that counts nothing"
        assert not gradient[1:].isfinite().all(), "an infinite divergence must be seen"
    else:
        agree(case, divergence)


@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_an_entry_that_only_the_student_excludes(divergence: Divergence) -> None:
    case = draw(difference=False)
    case.logits[:, 9] = -torch.inf
    agree(case, divergence)
    if isinstance(divergence, ForwardKL):
        assert (run(case, divergence)[0].divergence == torch.inf).all()


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_distributions_far_apart(divergence: Divergence, difference: bool) -> None:
    """Peaks where the other side has nothing that float32 could hold, and a common offset: logits
    of 400, which float32 rounds at 3e-5."""
    case = draw(difference=difference, gap=40.0)
    if not difference:
        case = replace(case, logits=20 * case.logits)
    agree(replace(case, other=case.other + 150), divergence, tolerance=1e-4)


@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_a_common_offset_changes_nothing(divergence: Divergence) -> None:
    """With e^-10 of the student's weight, log1p would lose what is left of it."""
    case = draw(difference=True)
    agree(replace(case, other=case.other - 10), divergence)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("divergence", EVERY[:-1], ids=repr)
def test_the_difference_form_keeps_small_gaps(
    divergence: Divergence, softcap: float | None
) -> None:
    """About 5e-9 nats: the gradient is still right to 1e-4 of its length. Total variation is left
    out, whose slope jumps where the two agree."""
    case = draw(difference=True, gap=1e-4, softcap=softcap)
    case = replace(case, taken_scale=torch.zeros_like(case.taken_scale))
    _, gradient = run(case, divergence)
    slope = expected(case, divergence)[1]
    error = (gradient.double() - slope)[1:].norm(dim=-1) / slope[1:].norm(dim=-1)
    assert (error < 1e-4).all(), error


def test_offsets_beyond_32_bits(tmp_path: Path) -> None:
    """Rows 2**30 entries apart in a file that is never filled: the fifth starts at 2**32, where an
    offset in 32 bits would be that of the first, and the third at 2**31, where it is negative."""
    stride, origin, rows, entries = 1 << 30, 1 << 31, 5, 64
    size = origin + (rows - 1) * stride + entries
    if INTERPRETED:
        path = str(tmp_path / "sparse")
        storage = torch.from_file(path, shared=True, size=size, dtype=torch.bfloat16)
    else:
        storage = torch.empty(size, dtype=torch.bfloat16, device=DEVICE)
    logits = torch.as_strided(storage, (rows, entries), (stride, 1), origin)
    drawn = draw(difference=True, rows=rows, entries=entries, dtype=torch.bfloat16)
    logits.copy_(drawn.logits)
    wanted = expected(drawn, ReverseKL())
    pairs = drawn.pairs(ReverseKL(), logits)
    statistics = measure(pairs)
    pull_(pairs, statistics, drawn.divergence_scale, drawn.taken_scale)
    torch.testing.assert_close(
        statistics.divergence.double(), wanted[0].divergence, rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(logits.double(), wanted[1], rtol=2**-7, atol=1e-6)


def test_no_rows() -> None:
    found, gradient = run(draw(difference=False, rows=1), ForwardKL())
    assert found.divergence.shape == (1,)
    empty = Case(
        logits=gradient[:0],
        other=gradient[:0],
        target_ids=torch.zeros(0, dtype=torch.long, device=DEVICE),
        divergence_scale=torch.zeros(0, device=DEVICE),
        taken_scale=torch.zeros(0, device=DEVICE),
        difference=False,
    )
    assert run(empty, ForwardKL())[0].divergence.shape == (0,)


def test_what_is_compared_here_is_supported_and_nothing_else() -> None:
    assert {type(divergence) for divergence in EVERY} == set(FORMS)
    assert all(map(supported, EVERY))
    assert not supported(Renyi(order=0.5))

    class Doubled(ForwardKL):
        """The same name for another thing."""

    assert not supported(Doubled())


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("divergence", EVERY, ids=repr)
def test_a_real_vocabulary(divergence: Divergence, difference: bool, dtype: torch.dtype) -> None:
    agree(draw(difference=difference, rows=16, entries=151_936, dtype=dtype), divergence)


@on_a_gpu
def test_a_table_of_more_than_2_to_the_31_entries() -> None:
    """The last rows of a table too long for 32-bit offsets equal the same rows on their own."""
    rows, entries = 14_336, 151_936
    assert rows * entries > 2**31
    tail = draw(difference=True, rows=8, entries=entries, dtype=torch.bfloat16)
    logits = torch.zeros(rows, entries, dtype=torch.bfloat16, device=DEVICE)
    other = torch.zeros_like(logits)
    logits[-8:], other[-8:] = tail.logits, tail.other
    padding = torch.zeros(rows - 8, device=DEVICE)
    table = replace(
        tail,
        logits=logits,
        other=other,
        target_ids=torch.cat([padding.long(), tail.target_ids]),
        divergence_scale=torch.cat([padding, tail.divergence_scale]),
        taken_scale=torch.cat([padding, tail.taken_scale]),
    )
    found, gradient = run(table, ReverseKL())
    alone, slope = run(tail, ReverseKL())
    assert torch.equal(found.divergence[-8:], alone.divergence)
    assert torch.equal(gradient[-8:], slope)
    assert (gradient[:-8] == 0).all()
