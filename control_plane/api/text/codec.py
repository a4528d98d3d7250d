"""A model's vocabulary: the text and the bytes of its tokens."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import MappingProxyType
from typing import NoReturn

from control_plane.api.text.decoder import TextDecoder
from control_plane.api.text.request import Chat, Prompt
from control_plane.engine.grammar.vocabulary import byte_alphabet, named_bytes
from control_plane.errors import BadRequest, TokenizerError
from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer


@dataclass(frozen=True)
class TextCodec:
    """A model's tokenizer, as far as it cannot hang: it decodes tokens. `PromptEncoder` does the rest."""

    tokenizer: ModelTokenizer
    vocab_size: int
    """The number of tokens that the model knows. The tokenizer may have more, or fewer."""
    _texts: dict[int, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    _bytes: dict[int, bytes | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def least_tokens(self, prompt: Prompt) -> int:
        """A lower bound on the number of the prompt's tokens. It is fast, while encoding may take seconds."""
        if isinstance(prompt, Chat):
            return sum(_text_length(each.get("content")) for each in prompt.messages) // self._longest_token
        return len(prompt) // self._longest_token if isinstance(prompt, str) else len(prompt)

    def check(self, token_ids: Sequence[int], name: str) -> None:
        """Raises `BadRequest` for ids unknown to the model, in the field of that name."""
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self.vocab_size:
            raise BadRequest(f"{name}: token ids must be from 0 to {self.vocab_size - 1}", name)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of tokens. Raises `BadRequest` for ids unknown to the model."""
        self.check(token_ids, "tokens")
        return self._text(list(token_ids), skip_special_tokens)

    def decoder(
        self,
        context: Sequence[int] = (),
        skip_special_tokens: bool = True,
        shown: Mapping[int, str] = MappingProxyType({}),
    ) -> TextDecoder:
        """A decoder for an answer that continues the text of `context`.

        `shown` are special tokens whose text is part of this answer even if special tokens are skipped.
        """
        decode = partial(self._text, skip_special_tokens=skip_special_tokens)
        if not skip_special_tokens:
            return TextDecoder(decode, frozenset(), context)
        return TextDecoder(decode, self._special_ids, context, shown)

    @property
    def eos_ids(self) -> frozenset[int]:
        """The id of the tokenizer's end token, if it has one."""
        eos = self.tokenizer.eos_token_id
        return frozenset() if eos is None else frozenset([eos])

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a special one, such as the end-of-text token."""
        return token_id in self._special_ids

    def special_ids(self, names: Collection[str]) -> frozenset[int]:
        """The ids of the special tokens with these names."""
        added = self.tokenizer.added_tokens
        return frozenset(token_id for token_id in self._special_ids if added[token_id].content in names)

    def token_text(self, token_id: int) -> str:
        """The text of a token alone: a special token's name, or U+FFFD for an unfinished character."""
        if token_id not in self._texts:
            try:
                self._texts[token_id] = self.tokenizer.decode([token_id])
            except BaseException as error:
                _fail(error)
        return self._texts[token_id]

    def token_bytes(self, token_id: int, text: str) -> bytes:
        """The bytes of a token with that text: even of a part of a character, if the vocabulary has them."""
        if token_id not in self._bytes:
            self._bytes[token_id] = self._vocabulary_bytes(token_id)
        known = self._bytes[token_id]
        return text.encode() if known is None else known

    def _vocabulary_bytes(self, token_id: int) -> bytes | None:
        """The bytes by the token's name; None if the name does not reveal them."""
        if token_id in self.tokenizer.added_tokens or token_id < 0:
            return None
        name = self.tokenizer.backend.id_to_token(token_id)
        return None if name is None else named_bytes(name, self._alphabet)

    @cached_property
    def _longest_token(self) -> int:
        """The length of the longest token, in characters, or in bytes (no fewer) if byte-level."""
        return max(map(len, self.tokenizer.vocabulary()))

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(token_id for token_id, token in self.tokenizer.added_tokens.items() if token.special)

    @cached_property
    def _alphabet(self) -> Mapping[str, int]:
        return byte_alphabet(self.tokenizer.backend)

    def _text(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        """Called some times for each generated token. Raises `TokenizerError`."""
        try:
            return self.tokenizer.decode(token_ids, skip_special_tokens)
        except BaseException as error:
            _fail(error)


def _text_length(content: object) -> int:
    """The characters of a message's text, which may be in parts."""
    if isinstance(content, list):
        return sum(_text_length(part.get("text")) for part in content if isinstance(part, dict))
    return len(content) if isinstance(content, str) else 0


def _fail(error: BaseException) -> NoReturn:
    """Raise the error for one of the tokenizer's, whose panics are not Exceptions."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    raise TokenizerError(f"the tokenizer has failed: {type(error).__name__}: {error}") from error
