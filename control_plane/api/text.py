"""Between text and tokens."""

from dataclasses import dataclass

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from control_plane.api.openai import Chat, GenerationRequest
from control_plane.errors import BadRequest


@dataclass(frozen=True)
class TextCodec:
    """A model's tokenizer and chat template."""

    tokenizer: PreTrainedTokenizerBase

    def encode(self, request: GenerationRequest) -> list[int]:
        """The prompt's tokens. Raises `BadRequest` for one that has none, or ids the model does not know."""
        prompt = request.prompt
        if isinstance(prompt, Chat):
            token_ids = self._chat_tokens(prompt)
        elif isinstance(prompt, str):
            token_ids = self.tokenizer.encode(prompt)
        else:
            token_ids = self._known_tokens(prompt)
        if not token_ids:
            raise BadRequest("prompt: it is empty", "prompt")
        return token_ids

    def _chat_tokens(self, chat: Chat) -> list[int]:
        if not self.tokenizer.chat_template:
            raise BadRequest("messages: this model has no chat template; use /v1/completions", "messages")
        text = str(
            self.tokenizer.apply_chat_template(chat.messages, add_generation_prompt=True, tokenize=False)
        )
        # The template writes the special tokens itself.
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _known_tokens(self, token_ids: list[int]) -> list[int]:
        size = len(self.tokenizer)
        if not all(0 <= token < size for token in token_ids):
            raise BadRequest(f"prompt: token ids must be from 0 to {size - 1}", "prompt")
        return token_ids

    def decoder(self) -> "TextDecoder":
        """A decoder for one answer."""
        return TextDecoder(self.tokenizer)


class TextDecoder:
    """Turns tokens into text as they come; a character whose bytes are not all there yet is held back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._length = 0
        self._token_ids: list[int] = []

    def add(self, token_id: int) -> str:
        """The text that this token completes."""
        self._token_ids.append(token_id)
        text = self._stream.step(self._tokenizer.backend_tokenizer, token_id) or ""
        self._length += len(text)
        return text

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        whole = str(self._tokenizer.decode(self._token_ids, skip_special_tokens=True))
        return whole[self._length :]
