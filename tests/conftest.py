"""Tiny random models with a character tokenizer: real folders that load in milliseconds."""

from __future__ import annotations

import string
from pathlib import Path
from typing import cast

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CONTEXT_LENGTH = 512
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable ASCII character, ChatML in the Qwen manner, pad != eos."""
    characters = sorted(set(string.printable) - set("\t\r\x0b\x0c"))
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *characters))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def save_random_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tied: bool = False,
    context_length: int = CONTEXT_LENGTH,
    layers: int = 2,
) -> Path:
    """A random Qwen3 whose next-token distributions are far from uniform."""
    end, pad = cast("tuple[int, int]", (tokenizer.eos_token_id, tokenizer.pad_token_id))
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=context_length,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            eos_token_id=end,
            pad_token_id=pad,
            bos_token_id=None,
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with an untied head. Read it, never write to it."""
    return save_random_model(tmp_path_factory.mktemp("untied") / "model", character_tokenizer())


@pytest.fixture(scope="session")
def tied_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the head tied to the embedding. Read it, never write to it."""
    return save_random_model(
        tmp_path_factory.mktemp("tied") / "model", character_tokenizer(), tied=True
    )
