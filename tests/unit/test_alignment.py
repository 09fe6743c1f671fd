"""Two tokenisations of one response on an axis of bytes."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from opd.config import locate
from opd.rollout.chat import Chat
from opd.teacher.alignment import align, byte_ends, grouped, shared_entries
from opd.types import Message, Prompt, Rollout
from tests.conftest import SPECIAL, TEMPLATE, character_tokenizer

PROMPT = Prompt("p", (Message("user", "?"),))


@pytest.fixture(scope="module")
def bytewise() -> Chat:
    """One token a byte."""
    return Chat.open(locate("data/tiny"))


@pytest.fixture(scope="module")
def merging() -> Chat:
    """Bytes, two of them merged with another's half: "=" with the first byte of a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    first = "\u00c3"  # the first byte of \u00e9, as byte-level tokenizers write it
    vocabulary = {token: index for index, token in enumerate([*alphabet, f"={first}", "12"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("=", first), ("1", "2")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(  # type: ignore[assignment]
        add_prefix_space=False, use_regex=False
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return Chat(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=SPECIAL[0],
            eos_token=SPECIAL[2],
            chat_template=TEMPLATE,
            clean_up_tokenization_spaces=False,
        )
    )


def response(chat: Chat, text: str, *, ends: bool = True) -> Rollout:
    ids = chat.response_ids(text)
    ids = ids if ends else ids[:-1]
    return Rollout(PROMPT, (), ids, (), 0, "stop" if ends else "length", text)


def test_tokens_inside_of_a_character_end_nowhere(bytewise: Chat, merging: Chat) -> None:
    text = "a=\u00e9;12"
    mine = byte_ends(bytewise, bytewise.response_ids(text)[:-1])
    assert mine == [1, 2, None, 4, 5, 6, 7]
    # "=" and half of the character are one token, so that both close with the character.
    found = align(bytewise, merging, response(bytewise, text))
    assert found is not None
    spans = [(list(first), list(second)) for first, second in found.groups]
    assert spans == [([0], [0]), ([1, 2, 3], [1, 2]), ([4], [3]), ([5, 6], [4]), ([7], [5])]
    assert len(found.token_ids) == 6 and found.token_ids[-1] == merging.end_of_turn
    assert [len(first) for first, _ in found.single.groups] == [1, 1, 1]


def test_a_response_that_was_cut_off_has_no_end(bytewise: Chat, merging: Chat) -> None:
    found = align(bytewise, merging, response(bytewise, "12", ends=False))
    assert found is not None and found.groups == ((range(2), range(1)),)


def test_what_the_other_cannot_spell_is_left_out(bytewise: Chat, merging: Chat) -> None:
    letters = Chat(character_tokenizer())
    assert align(bytewise, letters, response(bytewise, "plain")) is not None
    # No token for the character there, and a control token here that the text does not show.
    assert align(bytewise, letters, response(bytewise, "\u00e9")) is None
    start = bytewise.tokenizer.convert_tokens_to_ids("<|im_start|>")
    forged = response(bytewise, "ab")
    ids = (forged.token_ids[0], start, *forged.token_ids[1:])
    assert align(bytewise, merging, Rollout(PROMPT, (), ids, (), 0, "stop", "ab")) is None  # type: ignore[arg-type]
    assert align(bytewise, merging, response(bytewise, "")) is None


def test_what_is_left_over_is_one_more_group() -> None:
    assert grouped([1, 3], [1, 2]) == [(range(0, 1), range(0, 1)), (range(1, 2), range(1, 2))]
    assert grouped([1], [1, 2]) == [(range(1), range(1))]


def test_shared_entries_are_the_same_text(bytewise: Chat, merging: Chat) -> None:
    pairs = dict(shared_entries(bytewise, merging))
    names = bytewise.tokenizer.convert_ids_to_tokens(list(pairs))
    others = merging.tokenizer.convert_ids_to_tokens(list(pairs.values()))
    assert names == others and len(pairs) == 256 + len(SPECIAL)
    assert pairs[bytewise.end_of_turn] == merging.end_of_turn
