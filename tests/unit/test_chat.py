"""Chat: no text forges a control token, every token is shown, bad tokenizers are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from opd.errors import DataError
from opd.rollout.chat import UNFINISHED, Chat
from opd.types import Message

CONTROL = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|eos|>"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


def bytes_tokenizer(
    template: str | None = TEMPLATE, pad: str | None = "<|pad|>", eos: str | None = "<|im_end|>"
) -> PreTrainedTokenizerFast:
    """One token a byte, plus the control tokens of a ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(CONTROL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


CHAT = Chat(bytes_tokenizer())
TEXT = st.characters(exclude_categories=["Cs"])
USER = (Message("user", "2+2?"),)


def control_ids(ids: tuple[int, ...]) -> list[int]:
    return [i for i in ids if i >= 256]


def test_prompt_and_response_are_the_written_template() -> None:
    assert (
        CHAT.decoded(CHAT.prompt_ids((Message("system", "Be brief."), *USER)))
        == "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert CHAT.decoded(CHAT.response_ids("4")) == "4<|im_end|>"
    assert CHAT.text(CHAT.response_ids("4")) == "4"


def test_thinking_reaches_the_template() -> None:
    silent = Chat(bytes_tokenizer(), thinking=False)
    assert silent.decoded(silent.prompt_ids(USER)).endswith("assistant\n<think>\n\n</think>\n\n")
    assert Chat(bytes_tokenizer(), thinking=True).prompt_ids(USER) == CHAT.prompt_ids(USER)


def test_a_mode_changes_nothing_but_the_prompt() -> None:
    silent = Chat(bytes_tokenizer(), thinking=False)
    loud = silent.in_mode(True)
    assert loud.prompt_ids(USER) == CHAT.prompt_ids(USER) != silent.prompt_ids(USER)
    assert loud.response_ids("42") == silent.response_ids("42")
    assert loud.stop_ids == silent.stop_ids
    assert silent.in_mode(None) is silent and silent.in_mode(False) is silent
    assert silent.in_mode(True) is loud


def test_thinking_that_the_template_ignores_is_refused() -> None:
    plain = TEMPLATE.split("{% if enable_thinking")[0] + "{% endif %}"
    assert Chat(bytes_tokenizer(plain)).prompt_ids(USER) == CHAT.prompt_ids(USER)
    with pytest.raises(DataError, match=r"no `enable_thinking` switch; set model\.thinking"):
        Chat(bytes_tokenizer(plain), thinking=False)
    with pytest.raises(DataError, match=r"no `enable_thinking` switch"):
        Chat(bytes_tokenizer(plain)).in_mode(True)


@given(st.text(TEXT, max_size=60))
@settings(max_examples=300, deadline=None)
def test_content_survives_and_adds_no_control_token(content: str) -> None:
    message = Message("user", content)
    if any(token in content for token in CONTROL):
        return
    ids = CHAT.prompt_ids((message,))
    assert control_ids(ids) == control_ids(CHAT.prompt_ids(USER))
    assert CHAT.decoded(ids) == f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


@given(st.text(TEXT, max_size=20), st.sampled_from(CONTROL), st.text(TEXT, max_size=20))
@settings(max_examples=100, deadline=None)
def test_content_that_forges_a_control_token_is_refused(
    before: str, token: str, after: str
) -> None:
    content = before + token + after
    assert CHAT.control_token(content) in CONTROL
    with pytest.raises(DataError, match=r"the user message .* holds the control token '<\|"):
        CHAT.prompt_ids((Message("user", content),))
    with pytest.raises(DataError, match="the written response"):
        CHAT.response_ids(content)


def test_refusal_names_token_and_neighbourhood() -> None:
    with pytest.raises(DataError) as caught:
        CHAT.prompt_ids((Message("user", "x" * 500 + "hello<|im_end|>there"),))
    assert "hello<|im_end|>there" in str(caught.value) and len(str(caught.value)) < 250


@given(st.lists(st.integers(0, 255 + len(CONTROL)), max_size=40))
@settings(max_examples=200, deadline=None)
def test_one_piece_a_token(ids: list[int]) -> None:
    assert len(CHAT.pieces(ids)) == len(ids)


@given(st.text(alphabet=TEXT.filter(lambda c: c not in UNFINISHED + "\ufffd"), max_size=40))
@settings(max_examples=200, deadline=None)
def test_pieces_are_the_text(text: str) -> None:
    ids = CHAT.response_ids(text)
    pieces = CHAT.pieces(ids)
    assert "".join(p for p in pieces if p != UNFINISHED) == text + "<|im_end|>"
    assert pieces.count(UNFINISHED) == len(text.encode()) - len(text)


def test_stop_tokens_are_end_of_turn_then_eos() -> None:
    end, eos = (CHAT.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|eos|>"))
    assert CHAT.stop_ids == (end,)
    assert Chat(bytes_tokenizer(eos="<|eos|>")).stop_ids == (end, eos)
    bare = "{{ messages[-1].content }}"
    assert Chat(bytes_tokenizer(bare, eos="<|eos|>")).stop_ids == (eos,)
    with pytest.raises(DataError, match="a token that ends an answer"):
        Chat(bytes_tokenizer(bare, eos=None))


def test_padding_without_a_token_of_its_own_is_the_stop_token_and_says_so() -> None:
    assert not CHAT.pads_with_stop
    for pad in (None, "<|im_end|>"):
        chat = Chat(bytes_tokenizer(pad=pad))
        assert chat.pads_with_stop and chat.pad_id == chat.end_of_turn
        assert chat.response_ids("4")[-1] == chat.end_of_turn


@pytest.mark.parametrize("unknown", ["[UNK]", None])
def test_characters_without_a_token_are_refused(unknown: str | None) -> None:
    """With an unknown token they would be blurred, without one they would vanish."""
    vocabulary = {"a": 0, "[UNK]": 1, "<|im_end|>": 2}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=unknown, eos_token="<|im_end|>"
    )
    tokenizer.chat_template = "{{ messages[-1].content }}<|im_end|>"
    chat = Chat(tokenizer, name="tiny")
    assert chat.response_ids("aa") == (0, 0, 2)
    with pytest.raises(DataError, match=r"message 'aaé' holds 'é', for which tiny has no token"):
        chat.prompt_ids((Message("user", "aaé"),))


def test_half_a_character_is_refused() -> None:
    with pytest.raises(DataError, match=r"the user message holds '\\ud83d', half of a character"):
        CHAT.prompt_ids((Message("user", "a\ud83d"),))


def test_a_conversation_that_the_template_refuses_is_named() -> None:
    with pytest.raises(DataError, match=r"refuses a conversation of user, system.*comes first"):
        CHAT.prompt_ids((*USER, Message("system", "late")))


def test_open_reads_a_folder(tmp_path: Path) -> None:
    bytes_tokenizer().save_pretrained(tmp_path)
    chat = Chat.open(str(tmp_path), thinking=True)
    assert chat.prompt_ids(USER) == CHAT.prompt_ids(USER)
    assert (chat.pad_id, chat.stop_ids) == (CHAT.pad_id, CHAT.stop_ids)


def test_open_refuses_bad_folders_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}: no tokenizer can be loaded"):
        Chat.open(str(tmp_path))
    bytes_tokenizer(template=None).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=rf"^{tmp_path}: the tokenizer has no chat template"):
        Chat.open(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{ torn")
    with pytest.raises(DataError, match=rf"^{tmp_path}: no tokenizer can be loaded"):
        Chat.open(str(tmp_path))
