"""A learner's step whose rows the kernel computes against the same step without it: on a GPU, or
with TRITON_INTERPRET=1 on a CPU, which is how tests/unit/test_row_kernel.py runs this file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from opd.learner import row_kernel
from opd.learner.batch import pack, to_device
from opd.objective.clip import Clip
from opd.objective.divergence import JSD, Divergence, ForwardKL, ReverseKL
from opd.objective.loss import Distill
from opd.objective.term import Term
from opd.teacher.score import Teacher
from opd.teacher.weights import Live
from tests.students import distance, draw_trajectories, gradients, open_student

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(),
        reason="needs a CUDA device, or TRITON_INTERPRET=1",
    ),
]


def forget_device() -> None:
    """Accelerate remembers the first device of a process."""
    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.fixture(autouse=True)
def _device_is_free_to_choose() -> Iterator[None]:
    forget_device()
    yield
    forget_device()


def step(folder: Path, divergence: Divergence, clip: Clip, *, cpu: bool) -> dict[str, torch.Tensor]:
    """The gradients of one step."""
    forget_device()
    accelerator = Accelerator(cpu=cpu)
    assert accelerator.device.type == ("cpu" if cpu else "cuda")
    loss = Distill(target="solution", divergence=divergence, clip=clip)
    learner = open_student(folder, {"distil": Term(loss=loss)}, accelerator=accelerator)
    trajectories = draw_trajectories()
    packed = pack(trajectories, tokens_per_batch=64, packing=False, pad_id=0)
    batches = [to_device(batch, accelerator.device) for batch in packed]
    teacher = Teacher(weights=Live(), views={})
    learner.update(batches, teacher.score(trajectories, batches, ("solution",), learner), 0)
    return {name: gradient.cpu() for name, gradient in gradients(learner).items()}


@pytest.mark.parametrize("clip", ["none", "token_scale"])
@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JSD()], ids=repr)
@pytest.mark.parametrize("model", ["tiny_model_dir", "tied_model_dir"])
def test_a_step_with_the_kernel_is_one_without(
    model: str,
    divergence: Divergence,
    clip: Clip,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder: Path = request.getfixturevalue(model)
    torch.set_float32_matmul_precision("highest")
    calls, kernel = [0], row_kernel.COMPARER

    def counted(*arguments: object) -> None:
        calls[0] += 1
        kernel.pull_(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(row_kernel, "COMPARER", replace(kernel, pull_=counted))
    with_kernel = step(folder, divergence, clip, cpu=INTERPRETED)
    assert calls[0] > 0, "the kernel had no part in it"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    calls[0] = 0
    without = step(folder, divergence, clip, cpu=True)
    assert calls[0] == 0, "the kernel had a part in both"
    assert distance(with_kernel, without) < 1e-4
