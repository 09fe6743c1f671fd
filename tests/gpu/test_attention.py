"""Packed rows on a GPU: no further from float32 than bfloat16 itself is, in every backend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opd.learner.attention import IMPLEMENTATIONS, Backend, flash_version, refuse_unfaithful
from opd.learner.batch import build_context, context_to
from opd.learner.model import hidden_states
from tests.architectures import CONFIGS, VOCABULARY, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUDA = torch.device("cuda")
LENGTHS = ((30, 41), (97, 20), (3, 6), (64, 64))
BACKENDS: list[tuple[Backend, str]] = [
    (backend, architecture)
    for backend in IMPLEMENTATIONS
    for architecture in CONFIGS
    if (backend, architecture) != ("varlen", "gemma2")  # refused by name
]

Found = tuple[Tensor, dict[str, Tensor]]


def computed(
    architecture: str,
    implementation: str,
    *,
    packing: bool,
    half: bool,
    checkpointing: bool = False,
) -> Found:
    """Hidden states, and the gradients of their product with fixed random numbers."""
    model = tiny(architecture, implementation).to(CUDA)  # pyright: ignore[reportArgumentType]
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, VOCABULARY, (count,), generator=generator).tolist())

    prompts, responses = zip(*((ids(p), ids(r)) for p, r in LENGTHS), strict=True)
    context = context_to(build_context(prompts, responses, packing=packing, pad_id=0), CUDA)
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        hidden = hidden_states(model, context).float()
    weights = torch.randn(hidden.shape, generator=generator).to(CUDA)
    (hidden * weights).sum().backward()
    return hidden.detach(), {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("backend", "architecture"), BACKENDS)
def test_packed_is_padded(backend: Backend, architecture: str, checkpointing: bool) -> None:
    if backend == "flash_attention_2":
        if flash_version() is None:
            pytest.skip("flash-attn is not installed")
        refuse_unfaithful(backend, tiny(architecture, "eager"))
    exact = computed(architecture, "eager", packing=False, half=False)
    rounded = computed(architecture, "eager", packing=False, half=True)
    found = computed(
        architecture,
        IMPLEMENTATIONS[backend],
        packing=True,
        half=True,
        checkpointing=checkpointing,
    )
    assert apart(found[0], exact[0]) < 1.5 * apart(rounded[0], exact[0]) + 1e-3
    for name, gradient in exact[1].items():
        allowed = 2 * apart(rounded[1][name], gradient) + 5e-3
        assert apart(found[1][name], gradient) < allowed, name


@pytest.mark.parametrize(
    ("backend", "architecture"), [pair for pair in BACKENDS if pair[0] != "flash_attention_2"]
)
def test_no_segment_sees_another(backend: Backend, architecture: str) -> None:
    model = tiny(architecture, IMPLEMENTATIONS[backend]).to(CUDA)  # pyright: ignore[reportArgumentType]
    found = []
    for first in (5, 6):
        prompts = [(first, 7, 8, 9), (10, 11, 12)]
        context = build_context(prompts, [(13, 14), (15, 16, 17)], packing=True, pad_id=0)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            found.append(hidden_states(model, context_to(context, CUDA)))
    assert torch.equal(found[0][2:], found[1][2:]) and not torch.equal(found[0][:2], found[1][:2])
