"""The JSON of answers, whole or as the events of a stream.

https://platform.openai.com/docs/api-reference
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from control_plane.api.openai.errors import domain_error_body
from control_plane.api.openai.logprobs import logprobs_body
from control_plane.api.text.answer_format import AnswerHead, Usage, to_json
from control_plane.api.text.choice import Piece, ToolCallPart
from control_plane.api.text.message import Message
from control_plane.api.text.request import GenerationRequest
from control_plane.engine.state.sequence import FinishReason
from control_plane.errors import FaaSMoEError

DONE = b"data: [DONE]\n\n"
"""The last event of every stream."""


def usage_body(usage: Usage) -> dict[str, Any]:
    """Build OpenAI's `usage` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
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
        message = Message.of(pieces)
        entries = [entry for piece in pieces for entry in piece.logprobs]
        token_ids = [token_id for piece in pieces for token_id in piece.token_ids]
        is_chat = self.request.is_chat
        return {
            "index": index,
            **({"message": message_body(message)} if is_chat else {"text": message.text}),
            **({"token_ids": token_ids} if self.request.return_token_ids else {}),
            "logprobs": None if self.request.logprobs is None else logprobs_body(entries, is_chat),
            "finish_reason": finish_reason(pieces[-1], self.request),
        }

    def _head(self, name: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": name,
            "created": self._answer.created,
            "model": self._answer.model,
            "system_fingerprint": self._answer.system_fingerprint,
        }


def message_body(message: Message) -> dict[str, Any]:
    """Build the message of a chat. Its content is null if it only calls tools."""
    calls = [
        {
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in message.tool_calls
    ]
    return {
        "role": "assistant",
        "content": None if calls and not message.text else message.text,
        **({"reasoning_content": message.reasoning} if message.reasoning else {}),
        **({"tool_calls": calls} if calls else {}),
    }


def finish_reason(piece: Piece, request: GenerationRequest) -> FinishReason | None:
    """Why the answer has ended. As in OpenAI's API, the call of a named tool is an ordinary end."""
    is_named = request.tool_use is not None and request.tool_use.choice not in ("auto", "required")
    if piece.finish_reason is FinishReason.TOOL_CALLS and is_named:
        return FinishReason.STOP
    return piece.finish_reason


def _call_delta(part: ToolCallPart) -> dict[str, Any]:
    head = {"id": part.call_id, "type": "function"} if part.name else {}
    name = {"name": part.name} if part.name else {}
    return {"tool_calls": [{"index": part.index, **head, "function": {**name, "arguments": part.arguments}}]}


class ChoiceStream:
    """Builds the events of one choice: one per token, so the JSON that they share is encoded once."""

    def __init__(self, answer: CompletionFormat, index: int) -> None:
        request = answer.request
        self._request = request
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
            piece.finish_reason
            or piece.logprobs
            or piece.reasoning
            or piece.tool_calls
            or self._continuous_usage
            or self._reports_token_ids
            or self._request.tool_use
        )
        if self._begun and is_plain:
            before, after = self._plain
            return before + json.dumps(piece.text).encode() + after
        return self._full(
            piece, f',"usage":{to_json(usage_body(usage))}' if self._continuous_usage else self._usage
        )

    def _full(self, piece: Piece, usage: str) -> bytes:
        logprobs = to_json(logprobs_body(piece.logprobs, self._is_chat)) if piece.logprobs else "null"
        reason = to_json(finish_reason(piece, self._request))
        tokens = f',"token_ids":{to_json(piece.token_ids)}' if self._reports_token_ids else ""
        begun, self._begun = self._begun, True
        if not self._is_chat:
            before, after = self._parts(logprobs, reason, usage, tokens)
            return before + json.dumps(piece.text).encode() + after
        events = b"" if begun else self._delta(self._opening(), "null", usage)
        deltas = self._deltas(piece)
        if deltas or piece.logprobs or tokens or not piece.finish_reason:
            first, *others = deltas or [{} if self._request.tool_use else {"content": ""}]
            events += self._delta(to_json(first), "null", usage, logprobs, tokens)
            events += b"".join(self._delta(to_json(delta), "null", usage) for delta in others)
        return events + self._delta("{}", reason, usage) if piece.finish_reason else events

    def _opening(self) -> str:
        """The delta that opens a message. Its content stays null if it may turn out to be calls alone."""
        return to_json({"role": "assistant", "content": None if self._request.tool_use else ""})

    def _deltas(self, piece: Piece) -> list[dict[str, Any]]:
        """What a piece adds to a message: thinking, content, or a part of a call each."""
        return [
            *([{"reasoning_content": piece.reasoning}] if piece.reasoning else []),
            *([{"content": piece.text}] if piece.text else []),
            *map(_call_delta, piece.tool_calls),
        ]

    def _parts(self, logprobs: str, reason: str, usage: str, tokens: str = "") -> tuple[bytes, bytes]:
        """The bytes before and after the text in an event."""
        opening, closing = ('"delta":{"content":', "}") if self._is_chat else ('"text":', "")
        after = f'{closing}{tokens},"logprobs":{logprobs},"finish_reason":{reason}}}]{usage}}}\n\n'
        return f"data: {self._head}{opening}".encode(), after.encode()

    def _delta(self, delta: str, reason: str, usage: str, logprobs: str = "null", tokens: str = "") -> bytes:
        end = f'"logprobs":{logprobs},"finish_reason":{reason}}}]{usage}}}'
        return _event(f'{self._head}"delta":{delta}{tokens},{end}')


def event(data: Mapping[str, Any]) -> bytes:
    """Encode a JSON object as a server-sent event."""
    return _event(to_json(data))


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
