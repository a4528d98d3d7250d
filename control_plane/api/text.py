"""Between text and tokens."""

from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from control_plane.api.openai import Chat, GenerationRequest
from control_plane.errors import BadRequest

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What an unfinished character decodes to."""


@dataclass(frozen=True)
class TextCodec:
    """A model's tokenizer and chat template."""

    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    """Tokens that the model knows; a tokenizer may have more."""

    def encode(self, request: GenerationRequest) -> list[int]:
        """The prompt's tokens. Raises `BadRequest` for one that has none, or ids the model does not know."""
        prompt = request.prompt
        if isinstance(prompt, Chat):
            token_ids = self._chat_tokens(prompt)
        elif isinstance(prompt, str):
            token_ids = self.tokenizer.encode(_unicode(prompt))
        else:
            token_ids = prompt
        if not token_ids:
            raise BadRequest("prompt: it is empty", "prompt")
        if not all(0 <= token < self.vocab_size for token in token_ids):
            raise BadRequest(f"prompt: token ids must be from 0 to {self.vocab_size - 1}", "prompt")
        return token_ids

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

    def decoder(self) -> "TextDecoder":
        """A decoder for one answer."""
        return TextDecoder(self.tokenizer)


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

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._known = 0
        """How many of them were in text before the newest ones."""

    def add(self, token_id: int) -> str:
        """The text that this token completes."""
        self._token_ids.append(token_id)
        text = self._new_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._token_ids = self._token_ids[self._known :]
        self._known = len(self._token_ids)
        return text

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        return self._new_text()

    def _new_text(self) -> str:
        known = self._decode(self._token_ids[: self._known])
        return self._decode(self._token_ids)[len(known) :]

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
