"""One answer while it is generated: its text, its tokens' log-probabilities, and its end."""

from collections.abc import Iterator
from dataclasses import dataclass

from control_plane.api.openai.requests import GenerationRequest
from control_plane.api.text.codec import TextCodec
from control_plane.api.text.stop_strings import StopStrings
from control_plane.engine.sequence import FinishReason, Generated, Sequence, TokenLogprob

LEAST_LOGPROB = -9999.0
"""OpenAI's word for a token that cannot be: JSON has no infinity."""


@dataclass(frozen=True)
class Alternative:
    """A token that might have come."""

    token_id: int
    text: str
    raw: bytes
    """Its bytes, also where they are only a part of a character."""
    logprob: float


@dataclass(frozen=True)
class TokenEntry:
    """How likely a token was, and what else might have come."""

    token_id: int
    text: str
    """What it adds to the answer's text; "" for a part of a character, whose last token has it whole."""
    raw: bytes
    logprob: float | None
    """None for the first token of a prompt."""
    text_offset: int
    """Characters of the answer's text, the echoed prompt among them, before this token."""
    top: tuple[Alternative, ...]


@dataclass(frozen=True)
class Piece:
    """What one step added to an answer; the last one says why the answer ends."""

    text: str
    logprobs: tuple[TokenEntry, ...] = ()
    finish_reason: FinishReason | None = None
    token_ids: tuple[int, ...] = ()


class Choice:
    """Answer number `index` of a request. It gives one piece a token, also where text is held back."""

    def __init__(self, codec: TextCodec, request: GenerationRequest, sequence: Sequence, index: int) -> None:
        """`sequence` is what is generated for it; index // n is the number of its prompt."""
        self.index = index
        self.num_tokens = 0
        """Generated ones, up to the one that ended the answer."""
        self._codec = codec
        self._sequence = sequence
        self._stop = StopStrings(request.stop)
        prompt_ids = sequence.token_ids[: sequence.num_prompt_tokens]
        # A message begins a text of its own; a completion continues the prompt's.
        self._decoder = codec.decoder(() if request.is_chat else prompt_ids)
        self._echo: str | None = None
        if request.echo:
            prompt = request.prompts[index // request.n]
            self._echo = prompt if isinstance(prompt, str) else codec.decode(prompt_ids)
        self._offset = len(self._echo or "")

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended it, of which the engine does not know."""
        return self._stop.stopped

    def add(self, generated: Generated) -> Piece:
        """Take what a step generated. Not to be called after the last piece."""
        entries: list[TokenEntry] = []
        echo = ""
        if self._echo is not None:
            echo, self._echo = self._echo, None
            entries.extend(self._prompt_entries())
        text = ""
        if generated.token_id is not None:
            self.num_tokens += 1
            text = self._decoder.add(generated.token_id)
        if generated.finish_reason:
            text += self._decoder.finish()
        if generated.logprob:
            entries.append(self._entry(generated.logprob, text, self._offset))
        self._offset += len(text)
        emitted, stopped = self._stop.add(text)
        if generated.finish_reason and not stopped:
            emitted += self._stop.finish()
        reason = FinishReason.STOP if self.stopped else generated.finish_reason
        token_ids = () if generated.token_id is None else (generated.token_id,)
        return Piece(echo + emitted, tuple(entries), reason, token_ids)

    def _prompt_entries(self) -> Iterator[TokenEntry]:
        """Of the echoed prompt's tokens, if the sequence has their log-probabilities."""
        if not self._sequence.params.prompt_logprobs:
            return
        first, *others = self._sequence.token_ids[: self._sequence.num_prompt_tokens]
        decoder = self._codec.decoder()
        text = decoder.add(first)
        if not others:
            text += decoder.finish()
        yield TokenEntry(first, text, self._codec.token_bytes(first, text), None, 0, ())
        offset = len(text)
        for number, logprob in enumerate(self._sequence.prompt_logprobs, start=1):
            text = decoder.add(logprob.token_id)
            if number == len(others):
                text += decoder.finish()
            yield self._entry(logprob, text, offset)
            offset += len(text)

    def _entry(self, logprob: TokenLogprob, text: str, offset: int) -> TokenEntry:
        token_id = logprob.token_id
        # The text that comes with a special token was held back: its bytes are those of the tokens before.
        raw = b"" if self._codec.is_special(token_id) else self._codec.token_bytes(token_id, text)
        top = tuple(
            Alternative(token_id, text, raw, _finite(value))
            if other == token_id
            else self._alternative(other, value)
            for other, value in logprob.top
        )
        return TokenEntry(token_id, text, raw, _finite(logprob.logprob), offset, top)

    def _alternative(self, token_id: int, logprob: float) -> Alternative:
        text = self._codec.token_text(token_id)
        return Alternative(token_id, text, self._codec.token_bytes(token_id, text), _finite(logprob))


def _finite(logprob: float) -> float:
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB
