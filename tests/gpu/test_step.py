"""A learner's step on a GPU against the same step on the CPU, whose rows no kernel computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from opd.learner.batch import pack, to_device
from opd.objective.divergence import JSD, Divergence, ForwardKL, ReverseKL
from opd.objective.loss import Distill
from opd.objective.term import Term
from opd.teacher.score import Teacher
from opd.teacher.weights import Live
from tests.students import distance, draw_trajectories, gradients, open_student

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def _devices_are_free_to_choose() -> Iterator[None]:
    """Accelerate remembers the first device of a process."""
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()


def step(folder: Path, divergence: Divergence, clip: str, *, cpu: bool) -> dict[str, torch.Tensor]:
    """The gradients of one step, on the CPU."""
    AcceleratorState._reset_state()
    PartialState._reset_state()
    accelerator = Accelerator(cpu=cpu)
    assert accelerator.device.type == ("cpu" if cpu else "cuda")
    loss = Distill(view="solution", divergence=divergence, clip=clip, temperature=1.3)  # pyright: ignore
    learner = open_student(folder, {"distil": Term(loss=loss)}, accelerator=accelerator)
    packed = pack(draw_trajectories(), tokens_per_batch=64, packing=False, pad_id=0)
    batches = [to_device(batch, accelerator.device) for batch in packed]
    teacher = Teacher(weights=Live(), views={})
    learner.update(batches, teacher.score(batches, ("solution",), learner), 0)
    return {name: gradient.cpu() for name, gradient in gradients(learner).items()}


@pytest.mark.parametrize("clip", ["none", "token_scale"])
@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JSD()], ids=repr)
@pytest.mark.parametrize("model", ["tiny_model_dir", "tied_model_dir"])
def test_a_step_is_that_of_the_cpu(
    model: str, divergence: Divergence, clip: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(model)
    torch.set_float32_matmul_precision("highest")
    on_gpu = step(folder, divergence, clip, cpu=False)
    assert distance(on_gpu, step(folder, divergence, clip, cpu=True)) < 1e-4
