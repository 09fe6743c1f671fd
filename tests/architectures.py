"""Tiny random models of several architectures, alike but for how they compute attention."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

WINDOW = 4
VOCABULARY = 53
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS = {
    "qwen3": lambda: Qwen3Config(**SHAPE),
    "llama": lambda: LlamaConfig(**SHAPE),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=WINDOW),
    # One layer looks back WINDOW tokens, the other all the way; both cap their logits hard.
    "gemma2": lambda: Gemma2Config(
        **SHAPE,
        sliding_window=WINDOW,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=4.0,
        query_pre_attn_scalar=16,
    ),
}


def tiny(architecture: str, implementation: str) -> PreTrainedModel:
    """The same weights every time, computed with transformers' `implementation` of attention."""
    torch.manual_seed(0)
    config = CONFIGS[architecture]()
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).train()
