"""The Triton programs behind `row_kernel`: one a row, in blocks over the vocabulary. Ours.

Legend: `V` vocabulary, `x` the student's logits after soft cap and temperature, `y` the teacher's,
`gap = y - x`, `p` and `q` their probabilities, `ratio = log q - log p`, `change = q - p`.
Everything is computed in float32. A divergence is one function of (p, q, change, ratio, share) that
gives its summand, in nats, and its pull: the derivative with respect to log p, up to a multiple of
p, chosen so that it vanishes where p = q and no digits are lost near there.
"""
# Nothing that Triton compiles has types that a checker could follow.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)
"""Below every logit, and finite: the difference of two of them is 0, not NaN."""
ONE_SIDED = tl.constexpr(200.0)
"""Stands for an infinite `ratio`: large enough that e^-200 is 0 in float32."""
NOWHERE = tl.constexpr(float("-inf"))


@triton.jit
def expm1(x):
    """e^x - 1 without cancellation near 0."""
    tail = 1 + x * (1 / 7) * (1 + x * (1 / 8))
    tail = 1 + x * (1 / 5) * (1 + x * (1 / 6) * tail)
    tail = 1 + x * (1 / 3) * (1 + x * (1 / 4) * tail)
    return tl.where(tl.abs(x) < 0.5, x * (1 + x * 0.5 * tail), tl.exp(x) - 1)


@triton.jit
def log1p(x):
    """log(1 + x) without cancellation near 0, by 2 artanh(x / (2 + x))."""
    s = x / (2 + x)
    square = s * s
    tail = 1 / 7 + square * (1 / 9 + square * (1 / 11))
    tail = 1 + square * (1 / 3 + square * (1 / 5 + square * tail))
    return tl.where(tl.abs(x) < 0.4, 2 * s * tail, tl.log(1 + x))


@triton.jit
def log_mixture(ratio, share):
    """log(((1 - share) p + share q) / p)."""
    # Past 1 it is factored the other way round, so that nothing overflows.
    far = ratio > 1
    bounded = tl.where(far, -ratio, ratio)
    mixed = log1p(tl.where(far, 1 - share, share) * expm1(bounded))
    return tl.where(far, ratio + mixed, mixed)


@triton.jit
def forward_kl(p, q, change, ratio, share):
    return q * ratio, -change


@triton.jit
def reverse_kl(p, q, change, ratio, share):
    return -p * ratio, -p * ratio


@triton.jit
def jsd(p, q, change, ratio, share):
    mixture = log_mixture(ratio, share)
    from_student = -(1 - share) * p * mixture
    return share * q * (ratio - mixture) + from_student, from_student


@triton.jit
def skew_kl(p, q, change, ratio, share):
    surplus = ratio - log_mixture(ratio, share)
    return q * surplus, -(1 - share) * p * expm1(surplus)


@triton.jit
def skew_reverse_kl(p, q, change, ratio, share):
    mixture = log_mixture(ratio, 1 - share)
    return -p * mixture, -p * (mixture + share * expm1(-mixture))


@triton.jit
def held_skew_reverse_kl(p, q, change, ratio, share):
    summand = -p * log_mixture(ratio, 1 - share)
    return summand, summand


@triton.jit
def total_variation(p, q, change, ratio, share):
    direction = tl.where(change > 0, -0.5, tl.where(change < 0, 0.5, 0.0))
    return tl.abs(change) * 0.5, p * direction


@triton.jit
def tanh_and_slope(x):
    """tanh(x) and its derivative."""
    twice = -2 * tl.abs(x)
    decay = tl.exp(twice)
    size = -expm1(twice) / (1 + decay)
    return tl.where(x < 0, -size, size), 4 * decay / ((1 + decay) * (1 + decay))


@triton.jit
def read(
    logits,
    other,
    columns,
    inside,
    inverse_temperature,
    softcap,
    DIFFERENCE: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """`x`, `y`, their `gap` (0 unless both are finite) and the slope of the soft cap."""
    raw = tl.load(logits + columns, mask=inside, other=NOWHERE).to(tl.float32)
    second = tl.load(other + columns, mask=inside, other=NOWHERE).to(tl.float32)
    x, slope = raw, 1.0
    if CAPPED:
        bent, slope = tanh_and_slope(raw / softcap)
        x = tl.where(inside, softcap * bent, NOWHERE)
    if DIFFERENCE:
        gap = second
        if CAPPED:
            step, _ = tanh_and_slope(second / softcap)
            landed, _ = tanh_and_slope((raw + second) / softcap)
            # tanh(a + b) - tanh(a) by the addition theorem where subtracting would lose digits.
            small = step * slope / (1 + bent * step)
            gap = softcap * tl.where(tl.abs(second) < 0.5 * softcap, small, landed - bent)
        y = tl.where(x > NOWHERE, x + gap, NOWHERE)
    else:
        y = second
        if CAPPED:
            landed, _ = tanh_and_slope(second / softcap)
            y = tl.where(inside, softcap * landed, NOWHERE)
        gap = y - x
    both = (x > NOWHERE) & (y > NOWHERE)
    gap = tl.where(both, gap, 0.0)
    return x * inverse_temperature, y * inverse_temperature, gap * inverse_temperature, slope


@triton.jit
def compare(x, y, gap, normaliser, shift):
    """`p`, `q`, `change` and `ratio` from the student's log normaliser and the teacher's, less
    the student's."""
    p = tl.exp(x - normaliser)
    ratio = gap - shift
    ratio = tl.where(y > NOWHERE, ratio, -ONE_SIDED)
    ratio = tl.where(x > NOWHERE, ratio, tl.where(y > NOWHERE, ONE_SIDED, 0.0))
    q = tl.exp(y - (normaliser + shift))
    near = tl.abs(ratio) < 0.5
    change = tl.where(near, p * expm1(ratio), q - p)
    return p, tl.where(near, p + change, q), change, ratio


# What is read once a row gains nothing from alignment, and would be compiled anew without it.
@triton.jit(do_not_specialize_on_alignment=["target_ids", "found"])
def measure_row(
    logits,
    other,
    target_ids,
    found,
    logits_stride,
    other_stride,
    vocabulary,
    inverse_temperature,
    softcap,
    share,
    TERMS: tl.constexpr,
    KL: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Fill column `row` of `found` `[8, n]`. `KL` ("forward", "reverse" or "") says which sum the
    first read can gather; other divergences need the normalisers and read a second time."""
    # In 32 bits row * stride overflows beyond 2**31 elements.
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride
    other += row * other_stride
    lanes = tl.arange(0, BLOCK)
    zeros = tl.zeros([BLOCK], tl.float32)
    student_top = tl.full([], LOWEST, tl.float32)
    teacher_top = tl.full([], LOWEST, tl.float32)
    student_sum, student_log = zeros, zeros
    teacher_sum, teacher_log = zeros, zeros
    excess, mean, infinite = zeros, zeros, zeros
    for start in tl.range(0, vocabulary, BLOCK, num_stages=STAGES):
        columns = start + lanes
        x, y, gap, _ = read(
            logits,
            other,
            columns,
            columns < vocabulary,
            inverse_temperature,
            softcap,
            DIFFERENCE,
            CAPPED,
        )
        student_new = tl.maximum(student_top, tl.max(x, 0))
        teacher_new = tl.maximum(teacher_top, tl.max(y, 0))
        fade = tl.exp(student_top - student_new)
        teacher_fade = tl.exp(teacher_top - teacher_new)
        # The sums of w (x - top) move with the top before they fade.
        student_log = (student_log + student_sum * (student_top - student_new)) * fade
        teacher_log = (teacher_log + teacher_sum * (teacher_top - teacher_new)) * teacher_fade
        student_top, teacher_top = student_new, teacher_new
        student = tl.exp(x - student_top)
        teacher = tl.exp(y - teacher_top)
        student_sum = student_sum * fade + student
        teacher_sum = teacher_sum * teacher_fade + teacher
        student_log += student * tl.maximum(x - student_top, LOWEST)
        teacher_log += teacher * tl.maximum(y - teacher_top, LOWEST)
        near = (tl.abs(gap) < 0.5) & (x > NOWHERE) & (y > NOWHERE)
        raised = teacher * tl.exp(teacher_top - student_top)
        excess = excess * fade + tl.where(near, student * expm1(gap), raised - student)
        if KL == "forward":
            mean = mean * teacher_fade + teacher * gap
            infinite += tl.where((x == NOWHERE) & (y > NOWHERE), -NOWHERE, 0.0)
        elif KL == "reverse":
            mean = mean * fade + student * gap
            infinite += tl.where((y == NOWHERE) & (x > NOWHERE), -NOWHERE, 0.0)
    student_total = tl.sum(student_sum, 0)
    teacher_total = tl.sum(teacher_sum, 0)
    normaliser = student_top + tl.log(student_total)
    # <p, e^gap> - 1. Infinite or NaN where the two lie so far apart that it is not needed.
    excess_total = tl.sum(excess, 0) / student_total
    shift = tl.where(
        (excess_total > -0.5) & (excess_total < 1),
        log1p(excess_total),
        teacher_top + tl.log(teacher_total) - normaliser,
    )
    if KL == "forward":
        divergence = tl.sum(mean, 0) / teacher_total - shift + tl.sum(infinite, 0)
        pull_total = 0.0
    elif KL == "reverse":
        divergence = shift - tl.sum(mean, 0) / student_total + tl.sum(infinite, 0)
        pull_total = divergence
    else:
        summands, pulls = zeros, zeros
        for start in tl.range(0, vocabulary, BLOCK, num_stages=STAGES):
            columns = start + lanes
            x, y, gap, _ = read(
                logits,
                other,
                columns,
                columns < vocabulary,
                inverse_temperature,
                softcap,
                DIFFERENCE,
                CAPPED,
            )
            p, q, change, ratio = compare(x, y, gap, normaliser, shift)
            summand, pull = TERMS(p, q, change, ratio, share)
            summands += summand
            pulls += pull
        divergence = tl.sum(summands, 0)
        pull_total = tl.sum(pulls, 0)
    target = tl.load(target_ids + row)
    x, y, gap, _ = read(
        logits,
        other,
        target,
        target < vocabulary,
        inverse_temperature,
        softcap,
        DIFFERENCE,
        CAPPED,
    )
    logprob = x - normaliser
    both = (x > NOWHERE) & (y > NOWHERE)
    teacher_logprob = tl.where(both, logprob + (gap - shift), y - (normaliser + shift))
    rows = tl.num_programs(0)
    found += row
    tl.store(found, divergence)
    tl.store(found + rows, logprob)
    tl.store(found + 2 * rows, tl.log(student_total) - tl.sum(student_log, 0) / student_total)
    tl.store(found + 3 * rows, teacher_logprob)
    tl.store(found + 4 * rows, tl.log(teacher_total) - tl.sum(teacher_log, 0) / teacher_total)
    tl.store(found + 5 * rows, normaliser)
    tl.store(found + 6 * rows, shift)
    tl.store(found + 7 * rows, pull_total)


@triton.jit(
    do_not_specialize_on_alignment=[
        "target_ids",
        "normalisers",
        "shifts",
        "pull_totals",
        "divergence_scales",
        "taken_scales",
    ]
)
def pull_row(
    logits,
    other,
    target_ids,
    normalisers,
    shifts,
    pull_totals,
    divergence_scales,
    taken_scales,
    logits_stride,
    other_stride,
    vocabulary,
    inverse_temperature,
    softcap,
    share,
    TERMS: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Overwrite the row's logits with the gradient."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride
    other += row * other_stride
    lanes = tl.arange(0, BLOCK)
    target = tl.load(target_ids + row)
    normaliser = tl.load(normalisers + row)
    shift = tl.load(shifts + row)
    pull_total = tl.load(pull_totals + row)
    divergence_scale = tl.load(divergence_scales + row)
    taken_scale = tl.load(taken_scales + row)
    for start in tl.range(0, vocabulary, BLOCK, num_stages=STAGES):
        columns = start + lanes
        inside = columns < vocabulary
        x, y, gap, slope = read(
            logits, other, columns, inside, inverse_temperature, softcap, DIFFERENCE, CAPPED
        )
        p, q, change, ratio = compare(x, y, gap, normaliser, shift)
        _, pull = TERMS(p, q, change, ratio, share)
        # A row that counts nothing gets 0, even where its divergence is infinite.
        gradient = tl.where(divergence_scale != 0, divergence_scale * (pull - p * pull_total), 0.0)
        gradient += taken_scale * (tl.where(columns == target, 1.0, 0.0) - p)
        tl.store(logits + columns, gradient * slope * inverse_temperature, mask=inside)
