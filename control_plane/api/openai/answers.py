"""The JSON of answers, whole and in the chunks of a stream. https://platform.openai.com/docs/api-reference"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from control_plane.api.choice import Alternative, Piece, TokenEntry
from control_plane.api.openai.requests import GenerationRequest

Usage = Mapping[str, Any]


def usage_body(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def tokenize_body(token_ids: Sequence[int], max_model_len: int) -> dict[str, Any]:
    """The answer of /tokenize."""
    return {"count": len(token_ids), "max_model_len": max_model_len, "tokens": list(token_ids)}


def detokenize_body(text: str) -> dict[str, Any]:
    """The answer of /detokenize."""
    return {"prompt": text}


@dataclass(frozen=True)
class AnswerFormat:
    """The bodies of one request's answer."""

    request: GenerationRequest
    request_id: str
    """Unique; the answer's id is made of it."""
    model: str
    created: int
    """Seconds since 1970."""
    system_fingerprint: str

    @property
    def id(self) -> str:
        """The answer's, the same in all its chunks."""
        return f"{'chatcmpl' if self.request.is_chat else 'cmpl'}-{self.request_id}"

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> dict[str, Any]:
        """The answer of a request that does not stream: all pieces of each choice, in the choices' order."""
        name = "chat.completion" if self.request.is_chat else "text_completion"
        bodies = [self._whole_choice(index, pieces) for index, pieces in enumerate(choices)]
        return {**self._head(name), "choices": bodies, "usage": usage}

    def choice_stream(self, index: int) -> "ChoiceStream":
        """The chunks of one choice."""
        return ChoiceStream(self, index)

    def usage_event(self, usage: Usage) -> bytes:
        """The event that ends a stream whose client asked for usage."""
        return _event(_json({**self.chunk_head(), "choices": [], "usage": usage}))

    def chunk_head(self) -> dict[str, Any]:
        """What all chunks begin with."""
        return self._head("chat.completion.chunk" if self.request.is_chat else "text_completion")

    def _whole_choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        entries = [entry for piece in pieces for entry in piece.logprobs]
        token_ids = [token_id for piece in pieces for token_id in piece.token_ids]
        is_chat = self.request.is_chat
        return {
            "index": index,
            **({"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}),
            **({"token_ids": token_ids} if self.request.return_token_ids else {}),
            "logprobs": None if self.request.logprobs is None else logprobs_body(entries, is_chat),
            "finish_reason": pieces[-1].finish_reason,
        }

    def _head(self, name: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


class ChoiceStream:
    """The events of one choice. There is one for every token, so what they share is encoded once."""

    def __init__(self, answer: AnswerFormat, index: int) -> None:
        request = answer.request
        self._is_chat = request.is_chat
        self._continuous_usage = request.continuous_usage
        self._tells_tokens = request.return_token_ids
        self._usage = ',"usage":null' if request.include_usage and not request.continuous_usage else ""
        self._head = f'{_json(answer.chunk_head())[:-1]},"choices":[{{"index":{index},'
        self._plain = self._parts("null", "null", self._usage)
        self._begun = False

    def event(self, piece: Piece, usage: Usage | None = None) -> bytes:
        """The piece's event; a chat's first and last one come with another, which opens or ends the message.

        `usage` is the usage so far, for a request with continuous_usage.
        """
        is_plain = not (piece.finish_reason or piece.logprobs or self._continuous_usage or self._tells_tokens)
        if self._begun and is_plain:
            before, after = self._plain
            return before + json.dumps(piece.text).encode() + after
        return self._full(piece, f',"usage":{_json(usage)}' if self._continuous_usage else self._usage)

    def _full(self, piece: Piece, usage: str) -> bytes:
        logprobs = _json(logprobs_body(piece.logprobs, self._is_chat)) if piece.logprobs else "null"
        reason = _json(piece.finish_reason)
        text = json.dumps(piece.text).encode()
        tokens = f',"token_ids":{_json(piece.token_ids)}' if self._tells_tokens else ""
        begun, self._begun = self._begun, True
        if not self._is_chat:
            before, after = self._parts(logprobs, reason, usage, tokens)
            return before + text + after
        events = b"" if begun else self._delta('{"role":"assistant","content":""}', "null", usage)
        if piece.text or piece.logprobs or tokens or not piece.finish_reason:
            before, after = self._parts(logprobs, "null", usage, tokens)
            events += before + text + after
        return events + self._delta("{}", reason, usage) if piece.finish_reason else events

    def _parts(self, logprobs: str, reason: str, usage: str, tokens: str = "") -> tuple[bytes, bytes]:
        """What stands before and after the text in an event."""
        opening, closing = ('"delta":{"content":', "}") if self._is_chat else ('"text":', "")
        after = f'{closing}{tokens},"logprobs":{logprobs},"finish_reason":{reason}}}]{usage}}}\n\n'
        return f"data: {self._head}{opening}".encode(), after.encode()

    def _delta(self, delta: str, reason: str, usage: str) -> bytes:
        return _event(f'{self._head}"delta":{delta},"logprobs":null,"finish_reason":{reason}}}]{usage}}}')


def logprobs_body(entries: Sequence[TokenEntry], is_chat: bool) -> dict[str, Any]:
    """The tokens' log-probabilities, in the shape of chats or of completions."""
    if is_chat:
        return {"content": [_chat_entry(entry) for entry in entries], "refusal": None}
    return {
        "text_offset": [entry.text_offset for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "tokens": [entry.text for entry in entries],
        "top_logprobs": [_top_logprobs(entry) for entry in entries],
    }


def _chat_entry(entry: TokenEntry) -> dict[str, Any]:
    top = [_chat_token(other.text, other.logprob, other.raw) for other in entry.top]
    return {**_chat_token(entry.text, entry.logprob, entry.raw), "top_logprobs": top}


def _chat_token(text: str, logprob: float | None, raw: bytes) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(raw)}


def _top_logprobs(entry: TokenEntry) -> dict[str, float] | None:
    """By text, the chosen token among them: clients compare it with the others' greatest.

    Of tokens that read the same the likeliest counts; one that reads as the chosen does is known by its id.
    """
    if entry.logprob is None:
        return None
    top: dict[str, float] = {}
    for other in entry.top:
        top.setdefault(_key(other, entry), other.logprob)
    return {**top, entry.text: entry.logprob}


def _key(other: Alternative, entry: TokenEntry) -> str:
    same_text = other.text == entry.text and other.token_id != entry.token_id
    return f"token_id:{other.token_id}" if same_text else other.text


def _json(value: Any) -> str:
    # ASCII alone: some clients take U+2028 and the like for the end of a line.
    return json.dumps(value, separators=(",", ":"))


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
