"""A ready gradient times what pulls at it, which mostly is 1. Ours."""

from __future__ import annotations

from torch import Tensor

from opd.learner import row_kernel

BLOCK = 8192
"""Numbers of a program."""
WARPS = 8


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """Multiply `gradient` in place by the single number `factor`; by 1 none of it is read.

    A CPU looks. A GPU would have to wait for what it computes, so a kernel looks there, which ends
    at once; without Triton the gradient is read and written.
    """
    if gradient.is_cuda and gradient.is_contiguous() and row_kernel.installed():
        by_kernel_(gradient, factor)
    elif gradient.device.type != "cpu" or factor.item() != 1:
        gradient.mul_(factor)


def by_kernel_(gradient: Tensor, factor: Tensor) -> None:
    """`scale_` of a contiguous gradient, by the kernel."""
    assert gradient.is_contiguous(), "the numbers of the gradient must lie side by side"
    count = gradient.numel()
    if count:
        grid = (-(-count // BLOCK),)
        program = row_kernel.programs().scale_unless_one
        program[grid](gradient, factor, count, BLOCK=BLOCK, num_warps=WARPS)
