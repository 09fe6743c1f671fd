"""Messages to token ids and back: the only chat-template code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Self, cast

from jinja2 import TemplateError

from opd.errors import DataError, first_line
from opd.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNFINISHED = "⋯"
"""Stands for a token that holds only the first bytes of a character."""


class Chat:
    """A tokenizer with its chat template.

    `thinking` is given to the template as `enable_thinking`; None leaves the template's default.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, thinking: bool | None = None, name: str = ""
    ) -> None:
        """Raise DataError when the template is missing, or lacks what `thinking` asks for."""
        self.tokenizer = tokenizer
        self.thinking = thinking
        self.name = name or str(tokenizer.name_or_path) or "the tokenizer"
        self._modes: dict[bool, Chat] = {}
        self._special = frozenset(tokenizer.all_special_ids) | {
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        if not tokenizer.chat_template:
            raise DataError(
                f"{self.name}: the tokenizer has no chat template; take a chat model, or set "
                f"`chat_template` in its tokenizer_config.json"
            )
        self._check_switch()
        self.end_of_turn = self._find_end_of_turn()
        self.stop_ids = self._find_stop_ids()

    @classmethod
    def open(cls, path: str, thinking: bool | None = None) -> Self:
        """Load the tokenizer of the model folder or hub id `path`."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: no tokenizer can be loaded from there ({first_line(error)}); give "
                f"`model.path` a folder with tokenizer.json and tokenizer_config.json, or a hub id"
            ) from error
        return cls(cast("PreTrainedTokenizerBase", tokenizer), thinking, path)

    def in_mode(self, thinking: bool | None) -> Chat:
        """The same tokenizer and template with thinking on or off; None is this mode.

        Raises DataError when the template has no switch for it.
        """
        if thinking is None or thinking == self.thinking:
            return self
        if thinking not in self._modes:
            self._modes[thinking] = Chat(self.tokenizer, thinking, self.name)
        return self._modes[thinking]

    @property
    def pad_id(self) -> int:
        """What fills the rows of a batch.

        A model without a padding token of its own gets its end token. That costs nothing here:
        losses index action tokens, so a row's filling is never trained on and its end token is.
        """
        pad = self.tokenizer.pad_token_id
        return self.stop_ids[0] if pad is None else int(cast("int", pad))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that turns messages into token ids: the same for chats that agree."""
        whole = {
            "vocabulary": sorted(self.tokenizer.get_vocab().items()),
            "template": self.tokenizer.chat_template,
            "thinking": self.thinking,
        }
        return sha256(json.dumps(whole).encode()).hexdigest()

    @property
    def pads_with_stop(self) -> bool:
        """Whether the padding token also ends a response."""
        return self.pad_id in self.stop_ids

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids `[P]` of a conversation, up to where the model's answer starts; one that ends
        with words of the assistant is an answer that has begun."""
        if messages[-1].role == "assistant":
            begun = messages[-1].content
            self._check_content(begun, "the assistant message")
            more = self.tokenizer.encode(begun, add_special_tokens=False)
            return (*self.prompt_ids(messages[:-1]), *more)
        for message in messages:
            self._check_content(message.content, f"the {message.role} message")
        text = self._render(messages, answer=True, thinking=self.thinking)
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def response_ids(self, text: str) -> tuple[int, ...]:
        """Token ids `[T]` of a written response, its end-of-turn token included."""
        self._check_content(text, "the written response")
        return (*self.tokenizer.encode(text, add_special_tokens=False), self.end_of_turn)

    def text(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out: what rewards and views read."""
        return self._decode(ids, skip_special_tokens=True)

    def decoded(self, ids: Sequence[int]) -> str:
        """The text of `ids` with special tokens: what a person is shown of a prompt."""
        return self._decode(ids, skip_special_tokens=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """One readable string a token; a character in several tokens stands at its last one."""
        pieces: list[str] = []
        anchor = start = 0
        for end in range(1, len(ids) + 1):
            # Decoded after its left neighbour, because some tokenizers drop a first token's space.
            before, whole = self.decoded(ids[anchor:start]), self.decoded(ids[anchor:end])
            piece = whole[len(before) :]
            if piece.endswith("\ufffd") and end - start < 4:
                pieces.append(UNFINISHED)
                continue
            pieces.append(piece)
            anchor, start = start, end
        return pieces

    def control_token(self, text: str) -> str | None:
        """The first control token that `text` would be read as, None when it is plain text."""
        for token_id in self.tokenizer.encode(text, add_special_tokens=False):
            token = str(self.tokenizer.convert_ids_to_tokens(token_id))
            if token_id in self._special and (token != self.tokenizer.unk_token or token in text):
                return token
        return None

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return cast("str", text)

    def _render(self, messages: Sequence[Message], *, answer: bool, thinking: bool | None) -> str:
        options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=answer, **options
            )
        except TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise DataError(
                f"{self.name}: the chat template refuses a conversation of {roles} ({error}); "
                f"change the messages that the adapter or the view writes"
            ) from error
        return cast("str", text)

    def _check_content(self, content: str, place: str) -> None:
        """Raise DataError when `content` would forge a control token such as an end of turn, or
        would reach the model with a character missing."""
        half = next((char for char in content if "\ud800" <= char <= "\udfff"), None)
        if half is not None:
            raise DataError(
                f"{place} holds {half!r}, half of a character; mend the encoding of the dataset row"
            )
        token = self.control_token(content)
        if token is not None:
            raise DataError(
                f"{place} {_excerpt(content, content.find(token), len(token))!r} holds the control "
                f"token {token!r}; take it out of the dataset row, or replace it in the adapter"
            )
        lost = self._first_lost(content)
        if lost is not None:
            raise DataError(
                f"{place} {_excerpt(content, lost, 1)!r} holds {content[lost]!r}, for which "
                f"{self.name} has no token; replace it in the adapter, or take another model"
            )

    def _first_lost(self, content: str) -> int | None:
        """Where the first character stands that no known token covers.

        White space is let go, because some tokenizers fold it into their word marks.
        """
        if not self.tokenizer.is_fast:
            return None
        encoded = self.tokenizer(content, add_special_tokens=False, return_offsets_mapping=True)
        spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        token_at = {at: token_id for token_id, span in spans for at in range(*span)}
        unknown = self.tokenizer.unk_token_id
        return next(
            (
                at
                for at, char in enumerate(content)
                if (token_at[at] == unknown if at in token_at else not char.isspace())
            ),
            None,
        )

    def _check_switch(self) -> None:
        """Refuse a `thinking` that the template would ignore."""
        if self.thinking is None:
            return
        turns = (Message("user", "a"),)
        if self._render(turns, answer=True, thinking=True) == self._render(
            turns, answer=True, thinking=False
        ):
            raise DataError(
                f"{self.name}: the chat template has no `enable_thinking` switch; "
                f"set model.thinking, and that of teacher and evaluation, to null"
            )

    def _find_end_of_turn(self) -> int:
        """The control token that the template writes after an answer, otherwise the eos token."""
        answer = "42"
        turns = (Message("user", "a"), Message("assistant", answer))
        text = self._render(turns, answer=False, thinking=self.thinking)
        tail = text[text.rfind(answer) + len(answer) :]
        for token_id in self.tokenizer.encode(tail, add_special_tokens=False):
            if token_id in self._special:
                return token_id
        if self.tokenizer.eos_token_id is None:
            raise DataError(
                f"{self.name}: neither the chat template nor the tokenizer has a token that ends "
                f"an answer; set `eos_token` in its tokenizer_config.json"
            )
        return int(cast("int", self.tokenizer.eos_token_id))

    def _find_stop_ids(self) -> tuple[int, ...]:
        eos = self.tokenizer.eos_token_id
        others = () if eos is None else (int(cast("int", eos)),)
        return tuple(dict.fromkeys((self.end_of_turn, *others)))


def _excerpt(content: str, at: int, length: int, width: int = 24) -> str:
    """The neighbourhood of the `length` characters of `content` from `at` on."""
    start = max(at, 0)
    return content[max(start - width, 0) : start + length + width]
