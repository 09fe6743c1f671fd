"""The student: loading it, its hidden states and its head."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.hub import cached_file

from opd.config import locate, part
from opd.errors import RecipeError, first_line
from opd.learner.attention import (
    IMPLEMENTATIONS,
    Backend,
    packed_inputs,
    refuse_unavailable,
    refuse_unfaithful,
)
from opd.rows import sha256_of
from opd.types import Context, Head

Causal = PreTrainedModel | PeftModel

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@part
class LoRA:
    """Low-rank updates of frozen weights. arXiv 2106.09685."""

    rank: Annotated[int, Field(gt=0)] = 64
    alpha: Annotated[float, Field(gt=0)] = 128.0
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


@part
class Model:
    """Which model learns, and in which precision."""

    path: str
    """A folder or a hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What is computed in; trainable parameters are always kept in float32."""
    attention: Backend = "sdpa"
    """`varlen` is torch's own flash attention, `flash_attention_2` the package flash-attn; both
    need CUDA and bfloat16. All three keep packed sequences apart."""
    lora: LoRA | None = None
    """None trains every weight."""
    gradient_checkpointing: bool = False
    compile: bool = False
    """Compile the decoder layers when they are first used, once a run; their attention stays out.
    """
    thinking: bool | None = None
    """Passed to the chat template as `enable_thinking`; None leaves the template's default."""

    def open(self, device: torch.device) -> Causal:
        """The model ready to train on `device`.

        Raises RecipeError when the folder or hub id holds no causal language model that we serve,
        or when its attention cannot be computed as asked.
        """
        refuse_unavailable(self.attention, device, PRECISIONS[self.dtype])
        stored = torch.float32 if self.lora is None else PRECISIONS[self.dtype]
        model = load_causal(self.path, dtype=stored, attention=self.attention)
        nn.Module.to(model, device)
        silence_dropout(model)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.compile:
            compile_layers(model, device)
        if self.lora is None:
            return model.train()
        model.enable_input_require_grads()
        lora = LoraConfig(
            r=self.lora.rank,
            lora_alpha=int(self.lora.alpha),
            target_modules=list(self.lora.targets),
            task_type="CAUSAL_LM",
        )
        try:
            return get_peft_model(model, lora).train()
        except ValueError as error:
            raise RecipeError(
                f"model.lora.targets: {self.path} has none of them: {error}"
            ) from error

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Compute in `dtype` while parameters stay in float32."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(device.type, PRECISIONS[self.dtype])


def load_causal(path: str, *, dtype: torch.dtype, attention: Backend = "sdpa") -> PreTrainedModel:
    """The causal language model at `path`; RecipeError where there is none that we can train."""
    source = locate(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation=IMPLEMENTATIONS[attention]
        )
    except (OSError, ValueError, ImportError) as error:
        raise RecipeError(
            f"model.path: {path} cannot be loaded ({first_line(error)}); give a causal model's "
            "folder or hub id"
        ) from error
    refuse_unfaithful(attention, model)
    for scaling in ("logits_scaling", "logit_scale"):
        if getattr(model.config, scaling, None) not in (None, 1.0):
            raise RecipeError(
                f"model.path: {path} scales its logits ({scaling}), not supported here"
            )
    return model


def compile_layers(model: PreTrainedModel, device: torch.device) -> None:
    """Compile each decoder layer of `model` in place, for rows of any length.

    Parameters keep their names and copies start uncompiled. Raises RecipeError when `device` has
    no compiler, or the model no layers of the usual kind.
    """
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        raise RecipeError(
            "model.compile: there is no C++ compiler, which the CPU needs; install g++ or set "
            "model.compile=false"
        )
    if device.type == "cuda" and find_spec("triton") is None:
        raise RecipeError(
            "model.compile: a GPU needs the package triton, which is not installed; pip install "
            "triton or set model.compile=false"
        )
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if not layers:
        raise RecipeError(
            f"model.compile: {type(model).__name__} has no layers that are known to compile; set "
            "model.compile=false"
        )
    for layer in layers:
        layer.compile(dynamic=True)


def context_length(path: str) -> int:
    """The longest sequence, in tokens, that the model at `path` has positions for."""
    return AutoConfig.from_pretrained(locate(path)).max_position_embeddings


def weights_id(path: str) -> str:
    """A hash of the weights of the model at `path`, as they stand on disk."""
    folder = Path(cast("str", cached_file(locate(path), "config.json"))).parent
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    return sha256(" ".join(map(sha256_of, files)).encode()).hexdigest()


def silence_dropout(model: nn.Module) -> None:
    """Set every dropout to 0, so that a teacher of the same weights agrees with its student."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 (no Tensor, as its type says)


def causal_of(model: Causal) -> PreTrainedModel:
    """The plain model, with its adapter layers in place if it has any."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    return cast("PreTrainedModel", plain)


def backbone_of(model: Causal) -> nn.Module:
    """The model without its head."""
    causal = causal_of(model)
    return getattr(causal, causal.base_model_prefix)


def head_of(model: Causal) -> Head:
    """The head of `model`; its weight is the live parameter."""
    causal = causal_of(model)
    projection = cast("nn.Linear", causal.get_output_embeddings())
    softcap = getattr(causal.config, "final_logit_softcapping", None)
    return Head(projection.weight, getattr(projection, "bias", None), softcap)


def hidden_states(model: Causal, context: Context) -> Tensor:
    """`[N, D]` outputs of the backbone at the positions that predict the action tokens."""
    return layer_states(model, context, ())[None]


def layer_states(
    model: Causal, context: Context, exits: Collection[int]
) -> dict[int | None, Tensor]:
    """`[N, D]` that predict the action tokens: under None what the last layer gives to the head,
    and under each of `exits` (from 1) what that layer would give if it were the last.

    Right padding needs no mask under causal attention; packing passes its boundaries. Raises
    RecipeError where there is no such layer.
    """
    causal = causal_of(model)
    backbone = backbone_of(causal)
    packed = {}
    if context.boundaries is not None:
        packed = {"position_ids": context.position_ids}
        packed |= packed_inputs(causal, context.boundaries)
    output = backbone(
        input_ids=context.input_ids, use_cache=False, output_hidden_states=bool(exits), **packed
    )
    states: dict[int | None, Tensor] = {None: output.last_hidden_state}
    for layer in exits:
        if layer >= causal.config.num_hidden_layers or not hasattr(backbone, "norm"):
            raise RecipeError(
                f"terms: exit {layer} is no layer before the last of {type(causal).__name__}, "
                f"which has {causal.config.num_hidden_layers}, or no `norm` follows its last; "
                "choose a lower one, or another model"
            )
        states[layer] = cast("nn.Module", backbone.norm)(output.hidden_states[layer])
    return {layer: of.flatten(0, 1)[context.predict_at] for layer, of in states.items()}


def merged_weights(model: Causal) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the plain model's parameters under Hugging Face names, adapters folded in
    unless they are switched off.

    A tied head is yielded once, under the name of the embedding.
    """
    causal = causal_of(model)
    for name, parameter in causal.named_parameters():
        layer, folded, kind = name.partition(".base_layer.")
        if ".lora_" in name:
            continue
        weight = parameter.detach()
        if folded and kind == "weight":
            adapted = cast("LoraLinear", causal.get_submodule(layer))
            if not adapted.disable_adapters:
                update = adapted.get_delta_weight("default").detach()
                weight = weight + update.to(weight.dtype)
        yield (f"{layer}.{kind}" if folded else name), weight


def save_causal(model: Causal, folder: Path) -> None:
    """Write a plain Hugging Face folder, adapters folded in."""
    causal = causal_of(model)
    weights = {name: tensor.contiguous() for name, tensor in merged_weights(model)}
    causal.save_pretrained(folder, state_dict=weights)


def parameter_count(path: str) -> int:
    """How many parameters the model at `path` has; its weights are not read."""
    config = AutoConfig.from_pretrained(locate(path))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()
