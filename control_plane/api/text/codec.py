"""Between text and tokens."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from control_plane.api.openai.requests import Chat, Prompt
from control_plane.errors import BadRequest

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What an unfinished character decodes to."""
_MAX_CHARACTER_BYTES = 4
_MAX_HELD = 2 * _MAX_CHARACTER_BYTES
"""Tokens of one byte each; those that are no character by then will not become one."""
_CONTEXT_TOKENS = 5
_FALLBACK_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How SentencePiece's vocabularies name the token of one byte."""


def _byte_alphabet() -> Mapping[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary, as in GPT-2's encoder."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + number): byte for number, byte in enumerate(others)}


@dataclass(frozen=True)
class TextCodec:
    """A model's tokenizer and chat template."""

    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    """Tokens that the model knows; a tokenizer may have more, or fewer."""
    _texts: dict[int, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    _bytes: dict[int, bytes | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def encode(self, prompt: Prompt, add_special_tokens: bool = True) -> list[int]:
        """The prompt's tokens. Raises `BadRequest` for one that has none, or ids the model does not know.

        `add_special_tokens` is for text: a chat template writes them itself, and token ids are left alone.
        """
        if isinstance(prompt, Chat):
            token_ids = self._chat_tokens(prompt)
        elif isinstance(prompt, str):
            token_ids = self.tokenizer.encode(_unicode(prompt), add_special_tokens=add_special_tokens)
        else:
            token_ids = prompt
        if not token_ids:
            raise BadRequest("prompt: it is empty", "prompt")
        self._check(token_ids, "prompt")
        return token_ids

    def least_tokens(self, prompt: Prompt) -> int:
        """A number of tokens that the prompt has at least; known at once, where encoding takes seconds."""
        if isinstance(prompt, Chat):
            return sum(len(message["content"]) for message in prompt.messages) // self._longest_token
        return len(prompt) // self._longest_token if isinstance(prompt, str) else len(prompt)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The tokens' text, without special ones. Raises `BadRequest` for ids the model does not know."""
        self._check(token_ids, "tokens")
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def decoder(self, context: Sequence[int] = ()) -> "TextDecoder":
        """A decoder for one answer, which continues the text of `context`."""
        return TextDecoder(self.tokenizer, self._special_ids, context)

    def is_special(self, token_id: int) -> bool:
        """Whether the token has no text in an answer, as the one that ends it."""
        return token_id in self._special_ids

    def token_text(self, token_id: int) -> str:
        """What a token reads as alone; a special one by its name, an unfinished character as U+FFFD."""
        if token_id not in self._texts:
            self._texts[token_id] = str(self.tokenizer.decode([token_id]))
        return self._texts[token_id]

    def token_bytes(self, token_id: int, text: str) -> bytes:
        """The bytes of a token that reads as `text`: the vocabulary's, also of a part of a character."""
        if token_id not in self._bytes:
            self._bytes[token_id] = self._vocabulary_bytes(token_id)
        known = self._bytes[token_id]
        return text.encode() if known is None else known

    def _vocabulary_bytes(self, token_id: int) -> bytes | None:
        """What the vocabulary tells; None where the text is all that there is."""
        if token_id in self._added_ids or not 0 <= token_id < len(self.tokenizer):
            return None
        token = str(self.tokenizer.convert_ids_to_tokens(token_id))
        if self._alphabet and all(character in self._alphabet for character in token):
            return bytes(self._alphabet[character] for character in token)
        fallback = None if self._alphabet else _FALLBACK_BYTE.fullmatch(token)
        return bytes([int(fallback[1], 16)]) if fallback else None

    @cached_property
    def _longest_token(self) -> int:
        """Characters; byte-level vocabularies count bytes, which are no fewer."""
        return max(map(len, self.tokenizer.get_vocab()))

    @cached_property
    def _added_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.added_tokens_decoder)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def _alphabet(self) -> Mapping[str, int]:
        """Empty for a vocabulary that is not byte-level."""
        decoder = str(self.tokenizer.backend_tokenizer.decoder)
        return _byte_alphabet() if "ByteLevel" in decoder else {}

    def _check(self, token_ids: Sequence[int], name: str) -> None:
        if not all(0 <= token < self.vocab_size for token in token_ids):
            raise BadRequest(f"{name}: token ids must be from 0 to {self.vocab_size - 1}", name)

    def _chat_tokens(self, chat: Chat) -> list[int]:
        if not self.tokenizer.chat_template:
            raise BadRequest(
                "messages: this model has no chat template; use /v1/completions, or `faasmoe prompt --raw`",
                "messages",
            )
        try:
            text = self.tokenizer.apply_chat_template(
                chat.messages, add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise BadRequest(f"messages: the chat template refuses them: {error}", "messages") from error
        # The template writes the special tokens itself.
        return self.tokenizer.encode(_unicode(str(text)), add_special_tokens=False)


def _unicode(text: str) -> str:
    """The text itself. Raises `BadRequest` for half a surrogate pair, which JSON can escape."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"the text is not Unicode: {error}") from error
    return text


class TextDecoder:
    """Turns tokens into text as they come; a character whose bytes are not all there yet is held back.

    What a token reads as depends on those before it, so each is decoded with the piece of text before it
    (as in vLLM's detokenizer: tokenizers' own DecodeStream fails where invalid bytes change that piece).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        special_ids: frozenset[int] = frozenset(),
        context: Sequence[int] = (),
    ) -> None:
        """`special_ids` have no text; the end of `context` is the piece of text before the first token."""
        self._tokenizer = tokenizer
        self._special_ids = special_ids
        self._token_ids = [token_id for token_id in context[-_CONTEXT_TOKENS:] if token_id not in special_ids]
        if self._decode(self._token_ids).endswith(_REPLACEMENT):
            self._token_ids = []
        self._known = len(self._token_ids)
        """How many of them were in text before the newest ones."""

    def add(self, token_id: int) -> str:
        """The text that this token completes."""
        if token_id in self._special_ids:
            return ""
        self._token_ids.append(token_id)
        text = self._new_text()
        if not text or text.endswith(_REPLACEMENT):
            return self._release_invalid() if len(self._token_ids) - self._known > _MAX_HELD else ""
        self._token_ids = self._token_ids[self._known :]
        self._known = len(self._token_ids)
        return text

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        return self._new_text()

    def _release_invalid(self) -> str:
        """The text of those held tokens that later ones cannot change: no character lies across their end."""
        whole = self._decode(self._token_ids)
        for rest in range(1, _MAX_CHARACTER_BYTES + 1):
            settled = self._decode(self._token_ids[:-rest])
            if settled + self._decode(self._token_ids[-rest:]) == whole:
                text = settled[len(self._decode(self._token_ids[: self._known])) :]
                self._token_ids = self._token_ids[self._known :]
                self._known = len(self._token_ids) - rest
                return text
        return ""

    def _new_text(self) -> str:
        known = self._decode(self._token_ids[: self._known])
        return self._decode(self._token_ids)[len(known) :]

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
