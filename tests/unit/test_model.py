"""The student: what is trained, what is folded in, what two passes of one model may differ in."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from opd.errors import RecipeError
from opd.head import Head, taken_and_entropy
from opd.learner.batch import build_context
from opd.learner.model import (
    LoRA,
    Model,
    head_of,
    hidden_states,
    layer_states,
    merged_weights,
    parameter_count,
    save_causal,
    silence_dropout,
)
from tests.students import open_student, perturb_adapter

CPU = torch.device("cpu")
PROMPT, RESPONSE = (5, 6, 7), (8, 9, 10, 11)


def logits_of(model) -> torch.Tensor:
    """`[4, V]` logits of the response after the prompt, the way the learner computes them."""
    context = build_context([PROMPT], [RESPONSE], packing=False, pad_id=0)
    with torch.no_grad():
        return head_of(model).logits(hidden_states(model, context))


def test_logits_are_the_models_own(tiny_model_dir: Path) -> None:
    model = Model(path=str(tiny_model_dir)).open(CPU)
    with torch.no_grad():
        own = model(torch.tensor([PROMPT + RESPONSE])).logits[0, 2:6]
    assert torch.allclose(logits_of(model), own, atol=1e-5)


def test_soft_capped_heads_are_capped() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=2.0,
        initializer_range=1.0,
    )
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        own = model(torch.tensor([PROMPT + RESPONSE])).logits[0, 2:6]
    found = logits_of(model)
    assert torch.allclose(found, own, atol=1e-5) and found.abs().max() > 1.5


def test_dropout_is_silenced(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A teacher of the same weights must agree with its student in training mode."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        config.replace('"attention_dropout": 0.0', '"attention_dropout": 0.5')
    )
    model = Model(path=str(folder)).open(CPU)
    assert model.training and model.config.attention_dropout == 0.5
    assert torch.equal(logits_of(model), logits_of(model))


def test_dropout_modules_are_silenced() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).train()
    assert not torch.equal(logits_of(model), logits_of(model))
    silence_dropout(model)
    assert torch.equal(logits_of(model), logits_of(model))


def test_trainable_weights_are_float32(tiny_model_dir: Path) -> None:
    for lora in (None, LoRA(rank=2, alpha=4)):
        model = Model(path=str(tiny_model_dir), dtype="bfloat16", lora=lora).open(CPU)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    # What LoRA leaves frozen takes half the memory.
    assert any(p.dtype == torch.bfloat16 for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_a_saved_model_answers_like_the_student(
    tiny_model_dir: Path, tied_model_dir: Path, tmp_path: Path, tied: bool, lora: bool
) -> None:
    learner = open_student(tied_model_dir if tied else tiny_model_dir, lora=lora)
    if lora:
        perturb_adapter(learner)
    save_causal(learner.model, tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.allclose(logits_of(reloaded), logits_of(learner.model), atol=1e-4)
    names = {name for name, _ in merged_weights(learner.model)}
    assert set(load_file(tmp_path / "model.safetensors")) == names
    assert ("lm_head.weight" in names) != tied


def test_unknown_targets_are_named(tiny_model_dir: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.lora\.targets"):
        Model(path=str(tiny_model_dir), lora=LoRA(targets=("nowhere",))).open(CPU)


def test_parameters_are_counted_without_loading(tiny_model_dir: Path) -> None:
    model = Model(path=str(tiny_model_dir)).open(CPU)
    assert parameter_count(str(tiny_model_dir)) == sum(p.numel() for p in model.parameters())


def test_entropy_by_hand() -> None:
    """H(.7, .2, .1) = 0.801818553; a masked entry adds nothing."""
    logits = torch.tensor([[0.7, 0.2, 0.1, 0.0]]).log()
    logprob, entropy = taken_and_entropy(logits.log_softmax(-1), torch.tensor([1]))
    assert entropy.item() == pytest.approx(0.801818553, abs=1e-6)
    assert logprob.item() == pytest.approx(-1.6094379, abs=1e-6)
    # logits (3, 0, 0) at temperature 2
    hot, _ = Head(torch.eye(3)).score(torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([0]), 2.0)
    assert hot.exp().item() == pytest.approx(0.691438, abs=1e-6)


@pytest.mark.parametrize("packing", [False, True])
def test_the_last_norm_follows_an_exit(tiny_model_dir: Path, packing: bool) -> None:
    model = Model(path=str(tiny_model_dir)).open(torch.device("cpu"))
    context = build_context([(5, 6), (7,)], [(8, 9), (4, 3, 5)], packing=packing, pad_id=0)
    states = layer_states(model, context, (1,))
    assert torch.equal(states[None], hidden_states(model, context))
    shallow = deepcopy(model)
    shallow.model.layers = shallow.model.layers[:1]  # pyright: ignore
    shallow.config.num_hidden_layers = 1
    torch.testing.assert_close(states[1], hidden_states(shallow, context))
    with pytest.raises(RecipeError, match="exit 9 is no layer before the last"):
        layer_states(model, context, (9,))
