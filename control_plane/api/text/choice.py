"""One answer while it is generated: its text, the log-probabilities of its tokens, and its end."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

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
    """A part of a tool call. The first part has the call's id and name, and may have no arguments."""

    index: int
    """The call's number in the answer, from 0."""
    arguments: str
    """The next part of the arguments' JSON."""
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True)
class BrokenCall:
    """A call that was cut or turned out not to be a call, after parts of it were returned."""

    index: int
    text: str
    """The text that the model has written."""
    place: int
    """The number of characters of the piece's text before it."""


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
    broken_calls: tuple[BrokenCall, ...] = ()
    """A stream cannot take back parts of calls; an answer that is no stream has the text: see `Message`."""
    stop_string: str = ""
    """In the last piece, the stop string that ended the answer."""


class AnswerSplitter(Protocol):
    """Splits what a model writes into thinking, text and tool calls."""

    tokens: Mapping[int, str]
    """The text of the special tokens that it needs to see, by their ids."""

    @property
    def called(self) -> bool:
        """Whether the answer has a complete call."""

    @property
    def ended(self) -> bool:
        """Whether the answer has as many calls as are allowed."""

    def split(self, text: str, last: bool) -> Piece:
        """Add the next text; returns the part that later text cannot change, or with the `last` text, all."""


class Choice:
    """Answer number `index` of a request. Each token yields one piece, even if its text is held back."""

    def __init__(
        self,
        codec: TextCodec,
        request: GenerationRequest,
        sequence: Sequence,
        index: int,
        splitter: AnswerSplitter | None = None,
    ) -> None:
        """`sequence` is the answer's sequence in the engine; index // n is the number of its prompt.

        Without a splitter, all text belongs to the answer.
        """
        self.index = index
        self.num_tokens = 0
        """The number of tokens generated, including the one that ended the answer."""
        self._codec = codec
        self._sequence = sequence
        self._request = request
        self._stop = StopStrings(request.stop, request.include_stop)
        self._splitter = splitter
        prompt_ids = sequence.token_ids[: sequence.num_prompt_tokens]
        # A new message begins a new text; a completion continues the prompt's.
        context = () if request.begins_message else prompt_ids
        shown = splitter.tokens if splitter else {}
        self._decoder = codec.decoder(context, request.skip_special_tokens, shown)
        self._echo: str | None = None
        if request.echo:
            prompt = request.prompts[index // request.n]
            self._echo = (
                prompt if isinstance(prompt, str) else codec.decode(prompt_ids, request.skip_special_tokens)
            )
        self._offset = len(self._echo or "")

    @property
    def stopped(self) -> bool:
        """Whether a stop string or a tool call has ended the answer, which the engine does not know."""
        return self._stop.stopped or (self._splitter is not None and self._splitter.ended)

    def add(self, generated: Generated) -> Piece:
        """Add what a step generated; returns the piece for the client. There is none after the last."""
        entries: list[TokenEntry] = []
        echo = ""
        if self._echo is not None:
            echo, self._echo = self._echo, None
            entries.extend(self._prompt_entries())
        text, shown = self._texts(generated)
        if generated.logprob:
            entries.append(self._entry(generated.logprob, text, self._offset))
        self._offset += len(text)
        emitted, stopped = self._stop.add(shown, self.num_tokens > self._request.min_tokens)
        if generated.finish_reason and not stopped:
            emitted += self._stop.finish()
        split = self._split(emitted, generated.finish_reason is not None or stopped)
        reason = FinishReason.STOP if self.stopped else generated.finish_reason
        if reason is FinishReason.STOP and self._splitter and self._splitter.called:
            reason = FinishReason.TOOL_CALLS
        token_ids = () if generated.token_id is None else (generated.token_id,)
        return replace(
            split,
            text=echo + split.text,
            logprobs=tuple(entries),
            finish_reason=reason,
            token_ids=token_ids,
            stop_string=self._stop_string(generated),
        )

    def _split(self, text: str, last: bool) -> Piece:
        return Piece(text) if self._splitter is None else self._splitter.split(text, last)

    def _stop_string(self, generated: Generated) -> str:
        """The stop string that ended the answer; "" if there is none."""
        if generated.finish_reason is FinishReason.STOP and generated.token_id is not None:
            return self._stop.found or self._name_of_stop(generated.token_id)
        return self._stop.found

    def _texts(self, generated: Generated) -> tuple[str, str]:
        """The text that a step adds, and the part of it for the client, without the text of an end token."""
        token_id, reason = generated.token_id, generated.finish_reason
        before = self._decoder.finish() if reason else ""
        if token_id is None:
            return before, before
        self.num_tokens += 1
        text = self._decoder.add(token_id)
        if not reason:
            return text, text
        text += self._decoder.finish()
        if reason is not FinishReason.STOP:
            return text, text
        return text, text + self._name_of_stop(token_id) if self._request.include_stop else before

    def _name_of_stop(self, token_id: int) -> str:
        """The stop string that is the name of this special token; "" if none is, or such tokens have text."""
        if not self._request.skip_special_tokens or not self._codec.is_special(token_id):
            return ""
        name = self._codec.token_text(token_id)
        return name if name in self._request.stop else ""

    def _prompt_entries(self) -> Iterator[TokenEntry]:
        """The entries of an echoed prompt's tokens, if the request asks for them."""
        if not self._sequence.params.prompt_logprobs:
            return
        first, *others = self._sequence.token_ids[: self._sequence.num_prompt_tokens]
        decoder = self._codec.decoder(skip_special_tokens=self._request.skip_special_tokens)
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
        # Text that arrives with a skipped token was held back, so its bytes belong to earlier tokens.
        is_skipped = self._request.skip_special_tokens and self._codec.is_special(token_id)
        raw = b"" if is_skipped else self._codec.token_bytes(token_id, text)
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
