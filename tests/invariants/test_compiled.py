"""Compiled decoder layers: the same numbers under the same names, for rows of any length.

Tracing is what could go wrong with lengths, hooks and adapters. The last test generates code too,
which takes its time.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from opd.errors import RecipeError
from opd.learner.batch import pack
from opd.learner.learner import Learner
from opd.learner.model import Model, causal_of, compile_layers, hidden_states, merged_weights
from opd.teacher.score import Teacher
from opd.teacher.view import Plain
from opd.teacher.weights import EMA, External, Frozen, TeacherWeights
from tests.students import distance, draw_trajectories, gradients, open_student

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def traced(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Layers are traced and guarded, and the traces run as they are."""
    torch.set_num_threads(1)
    # Every record would be kept for a report, at ten times the time.
    caplog.set_level(logging.WARNING, logger="torch.__trace")
    torch.compiler.reset()
    counters.clear()
    with torch.compiler.set_stance(force_backend="eager"):
        yield
    torch.compiler.reset()


def graphs() -> int:
    """Traces so far."""
    return counters["stats"]["unique_graphs"]


def update(learner: Learner, weights: TeacherWeights, budget: int = 999) -> None:
    """One step on packed rows of what `weights` teach; the gradients are left for a look."""
    teacher = Teacher(weights=weights, views={"solution": Plain()})
    drawn = draw_trajectories()
    batches = pack(drawn, tokens_per_batch=budget, packing=True, pad_id=0)
    learner.update(batches, teacher.score(drawn, batches, ("solution",), learner), 0)


def first_gradients(
    folder: Path, *, compile: bool, lora: bool, checkpointing: bool
) -> dict[str, torch.Tensor]:
    learner = open_student(folder, lora=lora, gradient_checkpointing=checkpointing, compile=compile)
    weights = Frozen()
    weights.setup(learner)
    update(learner, weights)
    return gradients(learner)


@pytest.mark.parametrize(("lora", "checkpointing"), [(False, False), (True, True)])
def test_compiling_changes_nothing(tiny_model_dir: Path, lora: bool, checkpointing: bool) -> None:
    expected, found = (
        first_gradients(tiny_model_dir, compile=compile, lora=lora, checkpointing=checkpointing)
        for compile in (False, True)
    )
    assert distance(found, expected) < 1e-5
    assert graphs() > 0


def test_other_lengths_compile_nothing_new(tiny_model_dir: Path) -> None:
    learner, weights = open_student(tiny_model_dir, compile=True), Frozen()
    weights.setup(learner)
    update(learner, weights)
    first = graphs()
    for budget in (40, 60, 90):
        update(learner, weights, budget=budget)
    assert graphs() == first > 0


def test_an_average_on_hooks_is_not_passed_over(tiny_model_dir: Path) -> None:
    """Layers that are compiled already do not run hooks, on which LoRA's average hangs."""
    found = []
    for compile in (False, True):
        learner = open_student(tiny_model_dir, lora=True, compile=compile)
        weights = EMA(decay=0.2)
        weights.setup(learner)
        update(learner, Frozen())  # compiles the layers with the adapter off and no hooks
        weights.follow(learner)
        update(learner, weights)
        found.append(gradients(learner))
    assert distance(*found) < 1e-4


def test_names_stay_those_of_the_plain_model(tiny_model_dir: Path) -> None:
    for lora in (False, True):
        plain, compiled = (
            open_student(tiny_model_dir, lora=lora, compile=compile) for compile in (False, True)
        )
        names = [name for name, _ in merged_weights(plain.model)]
        assert names == [name for name, _ in merged_weights(compiled.model)]
        assert compiled_layers(compiled.model) == 2 and compiled_layers(plain.model) == 0


def compiled_layers(model: nn.Module) -> int:
    return sum(module._compiled_call_impl is not None for module in model.modules())


def test_teachers_are_compiled_like_the_student(tiny_model_dir: Path) -> None:
    for compile in (False, True):
        learner = open_student(tiny_model_dir, compile=compile)
        for weights in (Frozen(), EMA(), External(path=str(tiny_model_dir))):
            weights.setup(learner)
            with weights.scoring(learner) as teacher:
                assert compiled_layers(causal_of(teacher)) == (2 if compile else 0)


def test_a_machine_without_a_compiler_is_told(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RecipeError, match=r"model\.compile: .*install g\+\+"):
        Model(path=str(tiny_model_dir), compile=True).open(CPU)


def test_layers_of_no_known_kind_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"model\.compile: Linear has no layers"):
        compile_layers(nn.Linear(1, 1), CPU)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_generated_code_changes_nothing(tiny_model_dir: Path) -> None:
    (batch,) = pack(draw_trajectories(), tokens_per_batch=999, packing=True, pad_id=0)
    found = []
    for compile in (False, True):
        learner = open_student(tiny_model_dir, compile=compile)
        with torch.compiler.set_stance("default"):
            hidden = hidden_states(learner.model, batch.student)
            torch.manual_seed(1)
            (hidden * torch.randn_like(hidden)).sum().backward()
        found.append(gradients(learner))
    assert distance(*found) < 1e-5
    assert any(counters["inductor"].values())
