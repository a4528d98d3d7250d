"""Turns the tokens of an answer into text while they are generated."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""The text of an unfinished character."""
_MAX_CHARACTER_BYTES = 4
_MAX_HELD = 2 * _MAX_CHARACTER_BYTES
"""The most tokens to hold back, at one byte each: if they are no character by then, they never will be."""
_CONTEXT_TOKENS = 5


class TextDecoder:
    """Turns tokens into text one by one. A character is held back until all of its bytes are there.

    The text of a token depends on the tokens before it, so each is decoded along with the preceding piece of
    text, as in vLLM's detokenizer. (tokenizers' own DecodeStream fails when invalid bytes change that piece.)
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        special_ids: frozenset[int] = frozenset(),
        context: Sequence[int] = (),
        shown: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """`decode` returns the text of tokens. Special tokens have no text, except those in `shown`.

        The answer continues the text of `context`.
        """
        self._decode = decode
        self._shown = shown
        self._special_ids = special_ids
        self._token_ids = [token_id for token_id in context[-_CONTEXT_TOKENS:] if token_id not in special_ids]
        if self._decode(self._token_ids).endswith(_REPLACEMENT):
            self._token_ids = []
        self._known = len(self._token_ids)
        """How many of `_token_ids` have been returned as text."""

    def add(self, token_id: int) -> str:
        """Add a token; returns the text that it completes."""
        if token_id in self._shown:
            text = self.finish() + self._shown[token_id]
            self._token_ids, self._known = [], 0
            return text
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
        """The text held back, at the end of the answer."""
        return self._new_text()

    def _release_invalid(self) -> str:
        """Release the held tokens that end between two characters: later tokens cannot change their text."""
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
