"""Packed rows: as good as padded ones in values and gradients, and no segment sees another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DynamicCache,
    Lfm2Config,
    PreTrainedConfig,
    PreTrainedModel,
    RecurrentGemmaConfig,
)

from opd.errors import RecipeError
from opd.learner import attention
from opd.learner.attention import IMPLEMENTATIONS, Backend, refuse_unavailable, refuse_unfaithful
from opd.learner.batch import build_context
from opd.learner.model import LoRA, Model, causal_of, head_of, hidden_states, load_causal
from opd.rollout.engine import Request, Sampling
from opd.rollout.hf import HF
from opd.types import Context
from tests.architectures import CONFIGS, SHAPE, VOCABULARY, WINDOW, tiny
from tests.students import distance

SEGMENTED = IMPLEMENTATIONS["sdpa"]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LENGTHS = ((3, 4), (9, 2), (1, 6))
"""Prompt and response tokens of each sequence."""

Ids = tuple[int, ...]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in the same order every time."""
    torch.set_num_threads(1)


def sequences(seed: int = 1) -> tuple[list[Ids], list[Ids]]:
    """Prompts and responses, each longer together than the window."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> Ids:
        return tuple(torch.randint(1, VOCABULARY, (count,), generator=generator).tolist())

    assert min(map(sum, LENGTHS)) > WINDOW
    return [ids(prompt) for prompt, _ in LENGTHS], [ids(response) for _, response in LENGTHS]


def laid_out(*, packing: bool) -> Context:
    return build_context(*sequences(), packing=packing, pad_id=0)


def values_and_gradients(
    model: PreTrainedModel, context: Context
) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states, and the gradients of their product with fixed random numbers."""
    hidden = hidden_states(model, context)
    torch.manual_seed(2)
    (hidden * torch.randn_like(hidden)).sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return hidden.detach(), found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_packed_is_padded(architecture: str, checkpointing: bool) -> None:
    expected, gradients = values_and_gradients(tiny(architecture, "eager"), laid_out(packing=False))
    model = tiny(architecture, SEGMENTED)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    found, found_gradients = values_and_gradients(model, laid_out(packing=True))
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        assert distance({name: found_gradients[name]}, {name: gradient}) < 1e-4, name


@pytest.mark.parametrize("architecture", CONFIGS)
def test_padded_rows_are_eager_too(architecture: str) -> None:
    context = laid_out(packing=False)
    expected = hidden_states(tiny(architecture, "eager"), context)
    found = hidden_states(tiny(architecture, SEGMENTED), context)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("changed", range(len(LENGTHS)))
def test_no_segment_sees_another(architecture: str, changed: int) -> None:
    model = tiny(architecture, SEGMENTED)
    prompts, responses = sequences()
    others, other_responses = sequences(seed=9)
    before = hidden_states(model, build_context(prompts, responses, packing=True, pad_id=0))
    prompts[changed], responses[changed] = others[changed], other_responses[changed]
    after = hidden_states(model, build_context(prompts, responses, packing=True, pad_id=0))
    counts = [response for _, response in LENGTHS]
    for index, (old, new) in enumerate(zip(before.split(counts), after.split(counts), strict=True)):
        assert torch.equal(old, new) == (index != changed)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2"])
def test_one_segment_is_a_row(architecture: str) -> None:
    model = tiny(architecture, SEGMENTED)
    prompts, responses = sequences()
    packed = build_context(prompts[1:2], responses[1:2], packing=True, pad_id=0)
    padded = build_context(prompts[1:2], responses[1:2], packing=False, pad_id=0)
    expected = hidden_states(model, padded)
    assert torch.allclose(hidden_states(model, packed), expected, atol=1e-5)


class Shapes(TorchDispatchMode):
    """Records the shape of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self.seen.add(tuple(tensor.shape))
        return made


@pytest.mark.parametrize("architecture", CONFIGS)
def test_nothing_is_as_wide_as_the_row_is_long_twice(architecture: str) -> None:
    context = laid_out(packing=True)
    length = context.input_ids.shape[1]
    with Shapes() as made, torch.no_grad():
        hidden_states(tiny(architecture, SEGMENTED), context)
    assert not [shape for shape in made.seen if shape.count(length) > 1]


def documented_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """What torch documents of `varlen_attn`, which itself runs on CUDA only: `[T, H, E]` rows,
    windows of `left` tokens beside one's own, and as many key as query heads (torch 2.11)."""
    assert query.shape == key.shape == value.shape
    assert query.dtype == key.dtype == value.dtype
    assert cu_seq_q.dtype == torch.int32 and torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k == int(cu_seq_q.diff().max())
    row = torch.arange(len(query))
    segment = torch.searchsorted(cu_seq_q[1:].long(), row, right=True)
    back = row[:, None] - row[None, :]
    left, right = window_size
    allowed = (segment[:, None] == segment) & (back >= -right)
    if left >= 0:
        allowed &= back <= left
    query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
    output = scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scale)
    return output[0].transpose(0, 1)


def documented_varlen_since_2_12(
    query: Tensor, key: Tensor, value: Tensor, *args: Any, enable_gqa: bool = False, **kwargs: Any
) -> Tensor:
    """The same where fewer key than query heads have to be announced."""
    assert enable_gqa and key.shape[1] < query.shape[1]
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    return documented_varlen(query, key, value, *args, **kwargs)


@pytest.mark.parametrize("kernel", [documented_varlen, documented_varlen_since_2_12])
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "mistral"])
def test_varlen_is_asked_for_the_right_thing(
    monkeypatch: pytest.MonkeyPatch, architecture: str, kernel: Callable[..., Tensor]
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    model = tiny(architecture, IMPLEMENTATIONS["varlen"])
    expected, gradients = values_and_gradients(tiny(architecture, "eager"), laid_out(packing=False))
    found, found_gradients = values_and_gradients(model, laid_out(packing=True))
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert distance(found_gradients, gradients) < 1e-4
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        hidden_states(model, laid_out(packing=True))
    assert torch.allclose(
        hidden_states(model, laid_out(packing=False)), expected, atol=1e-5, rtol=1e-5
    )


def test_a_layer_that_loses_the_segments_fails() -> None:
    model = tiny("qwen3", SEGMENTED)

    def forgetful(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {name: value for name, value in kwargs.items() if name != "segments"}

    layer = model.get_submodule("model.layers.1")
    layer.register_forward_pre_hook(forgetful, with_kwargs=True)
    with pytest.raises((RuntimeError, IndexError)):
        hidden_states(model, laid_out(packing=True))


def test_an_attention_that_knows_no_segments_is_not_given_any() -> None:
    with pytest.raises(AssertionError, match="eager knows no segments"):
        hidden_states(tiny("qwen3", "eager"), laid_out(packing=True))


def drawn(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Greedy tokens of two prompts of unequal length, and their logits."""
    output: Any = model.eval().generate(  # pyright: ignore[reportCallIssue]
        inputs=torch.tensor([[0, 0, 7, 8, 9], [4, 5, 6, 7, 8]]),
        attention_mask=torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
        max_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences, torch.stack(output.logits)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "mistral"])
def test_generation_is_plain_sdpa(architecture: str) -> None:
    plain, ours = drawn(tiny(architecture, "sdpa")), drawn(tiny(architecture, SEGMENTED))
    assert torch.equal(ours[0], plain[0]) and torch.equal(ours[1], plain[1])


def test_generation_caps_attention() -> None:
    """Plain SDPA would sample from another model than the one that was trained."""
    eager, ours = drawn(tiny("gemma2", "eager")), drawn(tiny("gemma2", SEGMENTED))
    assert torch.equal(ours[0], eager[0]) and torch.allclose(ours[1], eager[1], atol=1e-5)
    plain = drawn(tiny("gemma2", "sdpa"))
    assert not torch.allclose(plain[1], eager[1], atol=1e-3)


@pytest.mark.parametrize("architecture", CONFIGS)
@torch.no_grad()
def test_a_cached_prompt_may_be_longer_than_the_window(architecture: str) -> None:
    prompt, response = sequences()[0][1], sequences()[1][2]
    model = tiny(architecture, SEGMENTED).eval()
    cache = DynamicCache(config=model.config)
    backbone = model.get_decoder()
    backbone(input_ids=torch.tensor([prompt]), past_key_values=cache, use_cache=True)
    rest = backbone(input_ids=torch.tensor([response]), past_key_values=cache, use_cache=True)
    whole = tiny(architecture, "eager").eval().get_decoder()(torch.tensor([prompt + response]))
    expected = whole.last_hidden_state[:, len(prompt) :]
    assert torch.allclose(rest.last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_the_engine_samples_from_the_model_that_is_trained(tmp_path: Path) -> None:
    saved = tiny("gemma2", "eager")
    assert saved.generation_config is not None
    saved.generation_config.eos_token_id = VOCABULARY - 1
    saved.save_pretrained(tmp_path)
    engine = HF()
    engine.open(str(tmp_path), dtype="float32", max_length=64, seed=0)
    prompt = sequences()[0][1]
    (completion,) = engine.generate([Request(prompt, seed=0)], Sampling(max_response_tokens=9))
    model = load_causal(str(tmp_path), dtype=torch.float32)
    context = build_context([prompt], [completion.token_ids], packing=True, pad_id=0)
    with torch.no_grad():
        logprobs = head_of(model).logits(hidden_states(model, context)).log_softmax(-1)
    own = logprobs.gather(1, torch.tensor(completion.token_ids)[:, None]).squeeze(1)
    assert torch.allclose(own, torch.tensor(completion.logprobs), atol=1e-4)


@pytest.fixture
def opened(tiny_model_dir: Path) -> Callable[..., Any]:
    def opened(**settings: Any) -> Any:
        torch.manual_seed(0)
        model = Model(path=str(tiny_model_dir), lora=LoRA(rank=4, alpha=8), **settings).open(CPU)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.1)
        return model

    return opened


def test_an_adapter_reaches_packed_rows_through_checkpoints(opened: Callable[..., Any]) -> None:
    """The head stays frozen; what is recomputed in the backward is packed and adapted as before."""
    expected, gradients = values_and_gradients(opened(), laid_out(packing=False))
    model = opened(gradient_checkpointing=True)
    assert not head_of(model).weight.requires_grad
    found, found_gradients = values_and_gradients(model, laid_out(packing=True))
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert gradients and all(".lora_" in name for name in gradients)
    assert distance(found_gradients, gradients) < 1e-4


def test_an_adapter_that_is_off_is_the_model_itself(
    opened: Callable[..., Any], tiny_model_dir: Path
) -> None:
    model = opened(gradient_checkpointing=True)
    base = load_causal(str(tiny_model_dir), dtype=torch.float32)
    assert len(list(base.parameters())) == len(
        [name for name, _ in causal_of(model).named_parameters() if ".lora_" not in name]
    )
    context = laid_out(packing=True)
    with torch.no_grad(), model.disable_adapter():
        off = hidden_states(model, context)
        assert torch.allclose(off, hidden_states(base, context), atol=1e-6)
    assert not torch.allclose(off, hidden_states(model, context).detach(), atol=1e-2)


def test_a_saved_model_names_no_implementation_of_ours(
    opened: Callable[..., Any], tmp_path: Path
) -> None:
    causal_of(opened()).save_pretrained(tmp_path)
    assert "segmented" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("backend", "flash", "device", "dtype", "cause"),
    [
        ("varlen", None, CPU, torch.bfloat16, "varlen needs a CUDA device"),
        ("varlen", None, CUDA, torch.float32, "half precision"),
        ("flash_attention_2", None, CUDA, torch.bfloat16, "the package flash-attn"),
        ("flash_attention_2", "2.8.3", CPU, torch.bfloat16, "needs a CUDA device"),
        ("flash_attention_2", "2.8.3", CUDA, torch.float32, "half precision"),
        ("sdpa", None, CPU, torch.float32, None),
        ("varlen", None, CUDA, torch.bfloat16, None),
        ("flash_attention_2", "2.8.3", CUDA, torch.bfloat16, None),
    ],
)
def test_what_a_machine_cannot_run_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    backend: Backend,
    flash: str | None,
    device: torch.device,
    dtype: torch.dtype,
    cause: str | None,
) -> None:
    monkeypatch.setattr(attention, "flash_version", lambda: flash and attention.Version(flash))
    if cause is None:
        refuse_unavailable(backend, device, dtype)
        return
    with pytest.raises(RecipeError, match=rf"model\.attention: .*{cause}.*set model\."):
        refuse_unavailable(backend, device, dtype)


@pytest.mark.parametrize(
    ("backend", "flash", "refused"),
    [
        ("sdpa", None, False),
        ("varlen", None, True),
        ("flash_attention_2", "2.5.9", True),
        ("flash_attention_2", "2.6.0", False),
    ],
)
def test_a_backend_that_drops_the_cap_is_refused(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, flash: str | None, refused: bool
) -> None:
    monkeypatch.setattr(attention, "flash_version", lambda: flash and attention.Version(flash))
    refuse_unfaithful(backend, tiny("mistral", SEGMENTED))
    model = tiny("gemma2", SEGMENTED)
    if not refused:
        refuse_unfaithful(backend, model)
        return
    with pytest.raises(RecipeError, match="cannot cap attention logits"):
        refuse_unfaithful(backend, model)


def test_refusals_reach_whoever_opens_a_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs a CUDA device"):
        Model(path=str(tiny_model_dir), dtype="bfloat16", attention="varlen").open(CPU)
    tiny("gemma2", SEGMENTED).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="cannot cap attention logits"):
        load_causal(str(tmp_path), dtype=torch.bfloat16, attention="varlen")


SHAPE_WITHOUT_HEADS = {name: value for name, value in SHAPE.items() if name != "head_dim"}


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        (Lfm2Config(**SHAPE_WITHOUT_HEADS, layer_types=["conv", "full_attention"]), "conv"),
        (RecurrentGemmaConfig(**SHAPE_WITHOUT_HEADS, lru_width=32), "no boundaries"),
        (BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=4), "no boundaries"),
    ],
)
def test_layers_that_would_mix_segments_are_refused(config: PreTrainedConfig, cause: str) -> None:
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(RecipeError, match=rf"packing: {type(model).__name__} has .*{cause}"):
        hidden_states(model, laid_out(packing=True))
