"""The JSON of the Messages API's answers, whole or as the events of a stream.

https://docs.claude.com/en/docs/build-with-claude/streaming
"""

from collections.abc import Sequence
from typing import Any

from control_plane.api.anthropic.errors import error_body, error_message
from control_plane.api.openai.errors import KINDS
from control_plane.api.text.answer_format import AnswerHead, Usage, to_json
from control_plane.api.text.blocks import Block, Blocks, Change
from control_plane.api.text.choice import Piece
from control_plane.api.text.request import GenerationRequest
from control_plane.engine.state.sequence import FinishReason
from control_plane.errors import FaaSMoEError

_STOP_REASONS = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
}
_DELTAS = {
    "text": '"text_delta","text"',
    "reasoning": '"thinking_delta","thinking"',
    "tool_call": '"input_json_delta","partial_json"',
}
"""A delta's type, and the name of its text, by the kind of the block."""
_GREW = 'event: content_block_delta\ndata: {"type":"content_block_delta","index":'


class MessageFormat:
    """Builds the answer to one request of the Messages API: see `AnswerFormat`."""

    def __init__(self, request: GenerationRequest, head: AnswerHead) -> None:
        self.request = request
        self._answer = head
        self._blocks = Blocks()

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> dict[str, Any]:
        """See `AnswerFormat`."""
        self._blocks.add_all(choices[0])
        content = [_whole_block(block) for block in self._blocks.all]
        return {**self._message(usage), "content": content, **self._stop()}

    def begin(self, usage: Usage) -> bytes:
        """See `AnswerFormat`."""
        return event("message_start", message=self._message(usage)) + event("ping")

    def piece(self, index: int, piece: Piece, usage: Usage) -> bytes:
        """See `AnswerFormat`."""
        return b"".join(_change(change, block, text) for change, block, text in self._blocks.add(piece))

    def end(self, usage: Usage) -> bytes:
        """See `AnswerFormat`."""
        return event("message_delta", delta=self._stop(), usage=_usage_body(usage)) + event("message_stop")

    def error(self, error: FaaSMoEError, request_id: str) -> bytes:
        """See `AnswerFormat`."""
        status, message = KINDS[type(error)].status, error_message(error, request_id)
        return event(**error_body(status, message, request_id))

    def _message(self, usage: Usage) -> dict[str, Any]:
        return {
            "id": f"msg_{self._answer.request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._answer.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage_body(usage),
        }

    def _stop(self) -> dict[str, Any]:
        stop_string, reason = self._blocks.stop_string, self._blocks.finish_reason
        if stop_string:
            return {"stop_reason": "stop_sequence", "stop_sequence": stop_string}
        return {"stop_reason": None if reason is None else _STOP_REASONS[reason], "stop_sequence": None}


def event(type: str, **fields: Any) -> bytes:
    """Encode a server-sent event of that type."""
    return f"event: {type}\ndata: {to_json({'type': type, **fields})}\n\n".encode()


def _usage_body(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
    }


def _whole_block(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    if block.kind == "text":
        return {"type": "text", "text": block.text}
    return _call(block, block.arguments or {})


def _call(block: Block, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": arguments}


def _change(change: Change, block: Block, text: str) -> bytes:
    if change == Change.GREW:
        # One per token, so it is not made of dictionaries.
        head = f'{_GREW}{block.index},"delta":{{"type":{_DELTAS[block.kind]}:'
        return f"{head}{to_json(text)}}}}}\n\n".encode()
    if change == Change.CLOSED:
        return event("content_block_stop", index=block.index)
    begun = _call(block, {}) if block.kind == "tool_call" else _whole_block(block)
    return event("content_block_start", index=block.index, content_block=begun)
