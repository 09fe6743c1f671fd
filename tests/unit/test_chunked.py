"""The loss from hidden states against plain autograd on full logits in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import get_args

import pytest
import torch
from torch import Tensor

from opd.head import Head
from opd.learner import row_tables
from opd.learner.chunked import linear_divergence
from opd.learner.chunks import even
from opd.learner.row_pairs import RowPairs
from opd.objective.clip import Clip
from opd.objective.divergence import (
    JSD,
    Divergence,
    ForwardKL,
    HeldSkewReverseKL,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)
from opd.objective.support import Full, Support, TopK

ROWS, VOCABULARY, WIDTH, TEACHER_WIDTH = 13, 37, 8, 5
DIVERGENCES = (
    ForwardKL(),
    ReverseKL(),
    JSD(),
    JSD(teacher_weight=0.2),
    SkewKL(skew=0.3),
    SkewReverseKL(skew=0.3),
    HeldSkewReverseKL(skew=0.3),
    TotalVariation(),
)
SUPPORTS = (
    Full(),
    TopK(size=6),
    TopK(size=6, chosen_by="teacher"),
    TopK(size=6, rest="renormalise"),
    TopK(size=6, chosen_by="teacher", rest="renormalise"),
)


class Case:
    """Random hidden states and heads in float64; the last rows weigh nothing."""

    def __init__(self, *, shared: bool, softcap: float | None = None, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.hidden = draw(ROWS, WIDTH)
        self.weight = draw(VOCABULARY, WIDTH) / 3
        self.bias = draw(VOCABULARY) / 3
        self.shared = shared
        self.softcap = softcap
        self.shown = self.hidden + draw(ROWS, WIDTH) / 2 if shared else draw(ROWS, TEACHER_WIDTH)
        self.theirs = draw(VOCABULARY, TEACHER_WIDTH) / 3
        self.weights = torch.rand(ROWS, generator=generator, dtype=torch.float64)
        self.weights[-2:] = 0
        # Excluded on both sides: neither a value nor a gradient may come of them.
        self.bias[3:5] = -math.inf
        self.their_bias = torch.zeros(VOCABULARY, dtype=torch.float64)
        self.their_bias[3:5] = -math.inf
        if softcap is not None:
            self.bias[3:5] = self.their_bias[3:5] = 0.0

    def sides(self, dtype: torch.dtype) -> tuple[Tensor, Head, Tensor, Head]:
        """Student and teacher as leaves in `dtype`."""
        hidden, weight, bias = (
            part.clone().to(dtype).requires_grad_()
            for part in (self.hidden, self.weight, self.bias)
        )
        head = Head(weight, bias, self.softcap)
        theirs = Head(self.theirs.to(dtype), self.their_bias.to(dtype), self.softcap)
        return hidden, head, self.shown.to(dtype), head if self.shared else theirs


def logits(hidden: Tensor, head: Head) -> Tensor:
    """The whole table, by the definition."""
    return head.capped(hidden @ head.weight.T + (0.0 if head.bias is None else head.bias))


def by_definition(
    case: Case, divergence: Divergence, support: Support, clip: Clip, temperature: float
) -> tuple[Tensor, Sequence[Tensor]]:
    """Values `[N]` and gradients from full logits, softmax and autograd, entry by entry."""
    hidden, head, shown, theirs = case.sides(torch.float64)
    student = torch.log_softmax(logits(hidden, head) / temperature, -1)
    with torch.no_grad():
        target = torch.log_softmax(logits(shown, theirs) / temperature, -1)
    if isinstance(support, TopK):
        chooser = student if support.chosen_by == "student" else target
        ids = chooser.detach().topk(support.size, -1).indices
        student, target = student.gather(-1, ids), target.gather(-1, ids)
        if support.rest == "tail":
            student, target = (
                torch.cat([side, (1 - side.exp().sum(-1, keepdim=True)).log()], -1)
                for side in (student, target)
            )
        else:
            student, target = (
                side - side.logsumexp(-1, keepdim=True) for side in (student, target)
            )
    kept = ~student.detach().isneginf()
    student, target = student.masked_fill(~kept, 0.0), target.masked_fill(~kept, 0.0)
    p, q = (side.exp() * kept for side in (student, target))
    entries = definition(divergence, student, target, p, q)
    if clip == "entry_nonneg":
        entries = entries + mass(divergence, p, q)
    if clip.startswith("entry"):
        value = entries.clamp(max=0.05).sum(-1)
    else:
        value = entries.sum(-1)
        over = value.detach() > 0.05
        if clip == "token_cap":
            value = value.clamp(max=0.05)
        elif clip == "token_scale":
            value = value * torch.where(over, 0.05 / value.detach(), 1.0)
    (value * case.weights).sum().backward()
    assert head.bias is not None
    found = [part.grad for part in (hidden, head.weight, head.bias)]
    return value.detach(), [part for part in found if part is not None]


def definition(divergence: Divergence, s: Tensor, t: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """The summands, as the papers print them."""
    match divergence:
        case ForwardKL():
            return q * (t - s)
        case ReverseKL():
            return p * (s - t)
        case JSD(teacher_weight=b):
            m = (b * q + (1 - b) * p).clamp(min=1e-300).log()
            return b * q * (t - m) + (1 - b) * p * (s - m)
        case SkewKL(skew=a):
            return q * (t - (a * q + (1 - a) * p).clamp(min=1e-300).log())
        case HeldSkewReverseKL(skew=a):
            return p * (s - (a * p + (1 - a) * q).detach().clamp(min=1e-300).log())
        case SkewReverseKL(skew=a):
            return p * (s - (a * p + (1 - a) * q).clamp(min=1e-300).log())
    return (p - q).abs() / 2


def mass(divergence: Divergence, p: Tensor, q: Tensor) -> Tensor:
    """b - a of a KL(a || b), entry by entry."""
    match divergence:
        case ForwardKL():
            return p - q
        case ReverseKL():
            return q - p
        case SkewKL(skew=a):
            return (1 - a) * (p - q)
        case HeldSkewReverseKL(skew=a):
            return (a * p + (1 - a) * q).detach() - p
        case SkewReverseKL(skew=a):
            return (1 - a) * (q - p)
    return torch.zeros_like(p)


def ours(
    case: Case,
    dtype: torch.dtype,
    divergence: Divergence,
    support: Support,
    clip: Clip,
    temperature: float,
    *,
    recompute: bool = False,
) -> tuple[Tensor, Sequence[Tensor]]:
    hidden, head, shown, theirs = case.sides(dtype)
    total, per_token = linear_divergence(
        hidden,
        head,
        shown,
        theirs,
        divergence,
        weights=case.weights.to(dtype),
        temperature=temperature,
        chunk_tokens=5,
        support=support,
        clip=clip,
        recompute=recompute,
    )
    (total * 2.0).backward()
    assert total.item() == pytest.approx((per_token * case.weights).sum().item(), rel=1e-5)
    assert head.bias is not None
    found = [part.grad for part in (hidden, head.weight, head.bias)]
    return per_token, [part / 2 for part in found if part is not None]


def assert_same(
    mine: tuple[Tensor, Sequence[Tensor]], theirs: tuple[Tensor, Sequence[Tensor]], error: float
) -> None:
    counted = slice(None, -2)
    assert (mine[0] - theirs[0])[counted].abs().max() <= error * theirs[0].abs().max()
    assert not mine[0][-2:].any()
    for ours, reference in zip(mine[1], theirs[1], strict=True):
        assert bool(ours.isfinite().all())
        assert (ours - reference).abs().max() <= error * reference.abs().max() + error * 1e-3


@pytest.mark.parametrize("clip", get_args(Clip))
@pytest.mark.parametrize("support", SUPPORTS, ids=repr)
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_gradients_are_those_of_autograd(
    divergence: Divergence, support: Support, clip: Clip
) -> None:
    for shared, temperature in product((True, False), (1.0, 1.7)):
        case = Case(shared=shared)
        choice = divergence, support, clip, temperature
        reference = by_definition(case, *choice)
        assert_same(ours(case, torch.float64, *choice), reference, 1e-9)
        assert_same(ours(case, torch.float32, *choice), reference, 1e-5)


@pytest.mark.parametrize("support", SUPPORTS, ids=repr)
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_a_soft_cap(divergence: Divergence, support: Support) -> None:
    for shared in (True, False):
        case = Case(shared=shared, softcap=2.0)
        choice = divergence, support, "none", 1.3
        reference = by_definition(case, *choice)
        assert_same(ours(case, torch.float64, *choice), reference, 1e-9)
        assert_same(ours(case, torch.float32, *choice), reference, 1e-5)


@pytest.mark.parametrize("support", SUPPORTS, ids=repr)
def test_recomputing_changes_nothing(support: Support) -> None:
    case = Case(shared=False)
    choice = JSD(), support, "none", 1.0
    once = ours(case, torch.float64, *choice)
    assert_same(ours(case, torch.float64, *choice, recompute=True), once, 1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_recomputing_outside_of_autocast_computes_in_its_dtype(shared: bool) -> None:
    case = Case(shared=shared)
    found = []
    for recompute in (False, True):
        hidden, head, shown, theirs = case.sides(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            total, _ = linear_divergence(
                hidden, head, shown, theirs, ReverseKL(), recompute=recompute
            )
        total.backward()
        assert head.weight.grad is not None
        found.append((hidden.grad, head.weight.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    hidden, head, shown, theirs = case.sides(torch.float32)
    linear_divergence(hidden, head, shown, theirs, ReverseKL())[0].backward()
    assert hidden.grad is not None and not torch.equal(hidden.grad, found[0][0])


def test_recomputed_values_take_weights_that_are_known_only_after_them() -> None:
    case = Case(shared=True)
    found = []
    for dtype in (torch.float64,):
        hidden, head, shown, theirs = case.sides(dtype)
        _, value = linear_divergence(hidden, head, shown, theirs, ForwardKL(), recompute=True)
        (value.softmax(0) * value).sum().backward()
        found.append(hidden.grad)
    hidden, head, shown, theirs = case.sides(torch.float64)
    student = logits(hidden, head).log_softmax(-1)
    target = logits(shown, theirs).detach().log_softmax(-1)
    value = torch.nn.functional.kl_div(
        student.masked_fill(student.isneginf(), 0),
        target.masked_fill(target.isneginf(), -1e9),
        log_target=True,
        reduction="none",
    ).sum(-1)
    (value.softmax(0) * value).sum().backward()
    torch.testing.assert_close(found[0], hidden.grad)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_any_chunk(chunk_tokens: int) -> None:
    case = Case(shared=False)
    found = []
    for size in (chunk_tokens, None):
        hidden, head, shown, theirs = case.sides(torch.float64)
        total, _ = linear_divergence(
            hidden, head, shown, theirs, JSD(), weights=case.weights, chunk_tokens=size
        )
        total.backward()
        found.append(hidden.grad)
    torch.testing.assert_close(*found)


def test_windows_are_even_and_the_largest_comes_first() -> None:
    """Tables are made for the first, and written over by the others."""
    for rows, most in product(range(1, 40), (1, 4, 7, 100)):
        sizes = [window.stop - window.start for window in even(rows, most)]
        assert sum(sizes) == rows and len(sizes) == math.ceil(rows / most)
        assert sizes[0] == max(sizes) <= most and max(sizes) - min(sizes) <= 1
    assert even(10, 4) == [slice(0, 4), slice(4, 7), slice(7, 10)]
    assert even(0, 4) == []


def test_a_frozen_head_gets_no_gradient() -> None:
    case = Case(shared=True)
    hidden, head, shown, _ = case.sides(torch.float64)
    frozen = Head(head.weight.detach(), None)
    linear_divergence(hidden, frozen, shown, frozen, ReverseKL())[0].backward()
    assert hidden.grad is not None and frozen.weight.grad is None


def test_the_teacher_gets_no_gradient() -> None:
    case = Case(shared=False)
    hidden, head, shown, theirs = case.sides(torch.float64)
    shown.requires_grad_()
    theirs.weight.requires_grad_()
    linear_divergence(hidden, head, shown, theirs, JSD())[0].backward()
    assert shown.grad is None and theirs.weight.grad is None


def test_no_gradient_means_no_work_for_one() -> None:
    case = Case(shared=True)
    hidden, head, shown, theirs = case.sides(torch.float64)
    with torch.no_grad():
        total, per_token = linear_divergence(hidden, head, shown, theirs, JSD())
    assert not total.requires_grad and per_token.sum() == pytest.approx(total.item())


def test_it_cannot_be_differentiated_twice() -> None:
    case = Case(shared=True)
    hidden, head, shown, theirs = case.sides(torch.float64)
    total, _ = linear_divergence(hidden, head, shown, theirs, JSD())
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(total, hidden, create_graph=True)
    total, _ = linear_divergence(hidden, head, shown, theirs, JSD())
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated before"):
        total.backward()


def test_the_gradient_of_the_head_is_adopted_not_copied() -> None:
    case = Case(shared=True)
    hidden, head, shown, theirs = case.sides(torch.float32)
    total, _ = linear_divergence(hidden, head, shown, theirs, JSD())
    # An address, not a reference: a tensor that somebody else holds would be copied.
    given = total.grad_fn.gradients.weight.data_ptr()  # pyright: ignore
    total.backward()
    assert head.weight.grad is not None and head.weight.grad.data_ptr() == given


def test_vocabularies_padded_unlike_are_compared_where_both_have_entries() -> None:
    case = Case(shared=False)
    found = []
    for more in (0, 3):
        hidden, head, shown, theirs = case.sides(torch.float64)
        padding = torch.full((more, WIDTH), 9.0, dtype=torch.float64)
        assert head.bias is not None
        wide = Head(
            torch.cat([head.weight.detach(), padding]).requires_grad_(),
            torch.cat([head.bias.detach(), padding[:, 0]]),
        )
        linear_divergence(hidden, wide, shown, theirs, JSD())[0].backward()
        assert wide.weight.grad is not None and not wide.weight.grad[VOCABULARY:].any()
        found.append(hidden.grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("multiplies", [True, False], ids=["multiplied", "raised"])
@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float32], ids=["low", "kept"])
@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JSD()], ids=repr)
def test_half_precision_keeps_the_signal_of_models_that_nearly_agree(
    divergence: Divergence, kept: torch.dtype, multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 5e-4 nats logits in bfloat16 on both sides lose 40 % of the gradient. Hidden states come
    in the head's precision or, from a residual stream in float32, in their own; a processor has
    instructions for half precision or has not."""
    monkeypatch.setattr("opd.product.multiplies", lambda dtype: multiplies)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 128, generator=generator).to(kept)
    # Logits of deviation 4, as high as those of a language model.
    weight = (torch.randn(4608, 128, generator=generator) * 4 / 128**0.5).bfloat16()
    noise = 0.008 * torch.randn(64, 128, generator=generator)
    shown = (hidden.float() + noise).to(kept)
    found = []
    for dtype, states in ((torch.float64, torch.float64), (torch.bfloat16, kept)):
        leaf = hidden.to(states).requires_grad_()
        head = weight.to(dtype).requires_grad_()
        total, per_token = linear_divergence(leaf, head, shown.to(states), head, divergence)
        total.backward()
        assert leaf.grad is not None and head.grad is not None
        found.append((leaf.grad, head.grad, per_token.mean().item()))
    (*exact, nats), (*gradients, _) = found
    assert 1e-5 < nats < 1e-3
    for gradient, reference in zip(gradients, exact, strict=True):
        assert (gradient.double() - reference).norm() / reference.norm() < 0.01


def test_sharp_disagreement_stays_finite() -> None:
    hidden = torch.tensor([[100.0, 0.0]], requires_grad=True)
    shown = torch.tensor([[0.0, 100.0]])
    head = torch.eye(2).repeat(3, 1)[:5]
    for divergence in DIVERGENCES:
        hidden.grad = None
        total, _ = linear_divergence(hidden, head, shown, head, divergence)
        total.backward()
        assert bool(total.isfinite())
        assert hidden.grad is not None and bool(hidden.grad.isfinite().all())


@pytest.mark.parametrize("divergence", [ReverseKL(), JSD()], ids=repr)
def test_compiled_rows_are_the_plain_ones(divergence: Divergence) -> None:
    """What a GPU without the kernel runs, compiled for this CPU."""
    generator = torch.Generator().manual_seed(0)
    gradients = []
    for rows_by in (row_tables.PLAIN, row_tables.compiled()):
        generator.manual_seed(0)
        for rows in (6, 4):
            logits, other = torch.randn(2, rows, VOCABULARY, generator=generator)
            ids, scale = torch.arange(rows), torch.rand(rows, generator=generator)
            pairs = RowPairs(
                *(logits, other / 5, ids, divergence, 1.3), is_difference=True, may_exclude=False
            )
            found = rows_by.measure(pairs)
            rows_by.pull_(pairs, found, scale, -scale)
            gradients.append((found.divergence, logits))
    plain, compiled = gradients[:2], gradients[2:]
    for mine, theirs in zip(plain, compiled, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("support", [Full(), TopK(size=20)], ids=repr)
def test_single_precision_over_a_real_vocabulary(support: Support) -> None:
    """A sum over 150,000 entries is where float32 loses its digits."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 16, generator=generator)
    weight = torch.randn(151_936, 16, generator=generator)
    shown = hidden + 0.3 * torch.randn(4, 16, generator=generator)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        leaf, head = hidden.clone().to(dtype).requires_grad_(), weight.to(dtype)
        total, _ = linear_divergence(
            leaf, head, shown.to(dtype), head, ReverseKL(), support=support
        )
        total.backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad.double())
    exact, found = gradients
    assert (found - exact).norm() / exact.norm() < 1e-5
