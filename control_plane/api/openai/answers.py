"""The JSON of answers, whole or as the events of a stream.

https://platform.openai.com/docs/api-reference
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from control_plane.api.openai.errors import domain_error_body
from control_plane.api.text.answer_format import AnswerHead, Usage, to_json
from control_plane.api.text.choice import Alternative, Piece, TokenEntry
from control_plane.api.text.request import GenerationRequest
from control_plane.errors import FaaSMoEError

DONE = b"data: [DONE]\n\n"
"""The last event of every stream."""


def usage_body(usage: Usage) -> dict[str, Any]:
    """Build OpenAI's `usage` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def usage_with_experts(usage: Usage) -> dict[str, Any]:
    """Extend OpenAI's `usage` object by the request's share of the expert calls."""
    experts = usage.experts
    return {
        **usage_body(usage),
        "experts": {
            "invocations": round(experts.invocations, 3),
            "cold_starts": round(experts.cold_starts, 3),
            "cold_experts": round(experts.cold_experts, 3),
            "wire_bytes": round(experts.wire_bytes),
            "seconds": round(experts.seconds, 6),
        },
    }


def tokenize_body(token_ids: Sequence[int], max_model_len: int) -> dict[str, Any]:
    """Build the answer of /tokenize."""
    return {"count": len(token_ids), "max_model_len": max_model_len, "tokens": list(token_ids)}


def detokenize_body(text: str) -> dict[str, Any]:
    """Build the answer of /detokenize."""
    return {"prompt": text}


class CompletionFormat:
    """Builds the answer to a chat or a completion: see `AnswerFormat`."""

    def __init__(self, request: GenerationRequest, head: AnswerHead) -> None:
        self.request = request
        self._answer = head
        self._streams: dict[int, ChoiceStream] = {}

    @property
    def id(self) -> str:
        """The answer's id, the same in all its chunks."""
        return f"{'chatcmpl' if self.request.is_chat else 'cmpl'}-{self._answer.request_id}"

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> dict[str, Any]:
        """See `AnswerFormat`."""
        name = "chat.completion" if self.request.is_chat else "text_completion"
        bodies = [self._whole_choice(index, pieces) for index, pieces in enumerate(choices)]
        return {**self._head(name), "choices": bodies, "usage": usage_with_experts(usage)}

    def begin(self, usage: Usage) -> bytes:
        """See `AnswerFormat`: nothing."""
        return b""

    def piece(self, index: int, piece: Piece, usage: Usage) -> bytes:
        """See `AnswerFormat`."""
        if index not in self._streams:
            self._streams[index] = ChoiceStream(self, index)
        return self._streams[index].event(piece, usage)

    def end(self, usage: Usage) -> bytes:
        """See `AnswerFormat`: the usage, if the client wants it."""
        if not self.request.include_usage:
            return DONE
        return event({**self.chunk_head(), "choices": [], "usage": usage_with_experts(usage)}) + DONE

    def error(self, error: FaaSMoEError, request_id: str) -> bytes:
        """See `AnswerFormat`."""
        return event(domain_error_body(error, request_id)) + DONE

    def chunk_head(self) -> dict[str, Any]:
        """The fields that all chunks begin with."""
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
            "created": self._answer.created,
            "model": self._answer.model,
            "system_fingerprint": self._answer.system_fingerprint,
        }


class ChoiceStream:
    """Builds the events of one choice: one per token, so the JSON that they share is encoded once."""

    def __init__(self, answer: CompletionFormat, index: int) -> None:
        request = answer.request
        self._is_chat = request.is_chat
        self._continuous_usage = request.continuous_usage
        self._reports_token_ids = request.return_token_ids
        self._usage = ',"usage":null' if request.include_usage and not request.continuous_usage else ""
        self._head = f'{to_json(answer.chunk_head())[:-1]},"choices":[{{"index":{index},'
        self._plain = self._parts("null", "null", self._usage)
        self._begun = False

    def event(self, piece: Piece, usage: Usage) -> bytes:
        """Build the event of a piece. In a chat, an event that opens or ends the message may accompany it."""
        is_plain = not (
            piece.finish_reason or piece.logprobs or self._continuous_usage or self._reports_token_ids
        )
        if self._begun and is_plain:
            before, after = self._plain
            return before + json.dumps(piece.text).encode() + after
        return self._full(
            piece, f',"usage":{to_json(usage_body(usage))}' if self._continuous_usage else self._usage
        )

    def _full(self, piece: Piece, usage: str) -> bytes:
        logprobs = to_json(logprobs_body(piece.logprobs, self._is_chat)) if piece.logprobs else "null"
        reason = to_json(piece.finish_reason)
        text = json.dumps(piece.text).encode()
        tokens = f',"token_ids":{to_json(piece.token_ids)}' if self._reports_token_ids else ""
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
        """The bytes before and after the text in an event."""
        opening, closing = ('"delta":{"content":', "}") if self._is_chat else ('"text":', "")
        after = f'{closing}{tokens},"logprobs":{logprobs},"finish_reason":{reason}}}]{usage}}}\n\n'
        return f"data: {self._head}{opening}".encode(), after.encode()

    def _delta(self, delta: str, reason: str, usage: str) -> bytes:
        return _event(f'{self._head}"delta":{delta},"logprobs":null,"finish_reason":{reason}}}]{usage}}}')


def logprobs_body(entries: Sequence[TokenEntry], is_chat: bool) -> dict[str, Any]:
    """Build the `logprobs` object of a chat or a completion."""
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
    """Log-probabilities by text. They include the chosen token, since clients compare it with the greatest.

    Among tokens with the same text the likeliest counts. One with the chosen token's text goes by its id.
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


def event(data: Mapping[str, Any]) -> bytes:
    """Encode a JSON object as a server-sent event."""
    return _event(to_json(data))


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
