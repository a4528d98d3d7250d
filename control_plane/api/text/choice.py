"""One answer while it is generated: its text, the log-probabilities of its tokens, and its end."""

from collections.abc import Iterator
from dataclasses import dataclass

from control_plane.api.text.codec import TextCodec
from control_plane.api.text.request import GenerationRequest
from control_plane.api.text.stop_strings import StopStrings
from control_plane.engine.state.sequence import FinishReason, Generated, Sequence, TokenLogprob

LEAST_LOGPROB = -9999.0
"""OpenAI's value for an impossible token: JSON has no infinity."""


@dataclass(frozen=True)
class Alternative:
    """A token that might have been chosen."""

    token_id: int
    text: str
    raw: bytes
    """The token's bytes, even if they are only a part of a character."""
    logprob: float


@dataclass(frozen=True)
class TokenEntry:
    """The log-probability of a token, and of its likeliest alternatives."""

    token_id: int
    text: str
    """The text that it adds to the answer. A character of several tokens belongs to the last of them."""
    raw: bytes
    logprob: float | None
    """The token's log-probability; None for the first token of a prompt."""
    text_offset: int
    """The number of characters before this token in the answer's text, which includes an echoed prompt."""
    top: tuple[Alternative, ...]


@dataclass(frozen=True)
class ToolCallPart:
    """A part of a tool call. The first part of a call has its id and name, and perhaps no arguments."""

    index: int
    """The call's number in the answer, from 0."""
    arguments: str
    """The next part of the arguments' JSON."""
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True)
class Piece:
    """The part of an answer that one step adds. The last one has a `finish_reason`."""

    text: str
    logprobs: tuple[TokenEntry, ...] = ()
    finish_reason: FinishReason | None = None
    token_ids: tuple[int, ...] = ()
    reasoning: str = ""
    """Text between the model's thinking marks, which is not part of `text`."""
    tool_calls: tuple[ToolCallPart, ...] = ()


class Choice:
    """Answer number `index` of a request. Each token yields one piece, even if its text is held back."""

    def __init__(self, codec: TextCodec, request: GenerationRequest, sequence: Sequence, index: int) -> None:
        """`sequence` is the answer's sequence in the engine; index // n is the number of its prompt."""
        self.index = index
        self.num_tokens = 0
        """The number of tokens generated, including the one that ended the answer."""
        self._codec = codec
        self._sequence = sequence
        self._stop = StopStrings(request.stop)
        prompt_ids = sequence.token_ids[: sequence.num_prompt_tokens]
        # A new message begins a new text; a completion continues the prompt's.
        self._decoder = codec.decoder(() if request.begins_message else prompt_ids)
        self._echo: str | None = None
        if request.echo:
            prompt = request.prompts[index // request.n]
            self._echo = prompt if isinstance(prompt, str) else codec.decode(prompt_ids)
        self._offset = len(self._echo or "")

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer. The engine does not know of stop strings."""
        return self._stop.stopped

    def add(self, generated: Generated) -> Piece:
        """Add what a step generated; returns the piece for the client. There is none after the last."""
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
        """The entries of an echoed prompt's tokens, if the request asks for them."""
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
        # Text that arrives with a special token was held back, so its bytes belong to earlier tokens.
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
