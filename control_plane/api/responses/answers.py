"""The JSON of the Responses API's answers, whole or as the events of a stream.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

import time
from collections.abc import Sequence
from typing import Any

from control_plane.api.openai.errors import KINDS, domain_error_body
from control_plane.api.responses.requests import ResponseRequest
from control_plane.api.text.answer_format import AnswerHead, Usage, to_json
from control_plane.api.text.blocks import Block, Blocks, Change
from control_plane.api.text.choice import Piece
from control_plane.api.text.request import GenerationRequest
from control_plane.engine.state.sequence import FinishReason
from control_plane.errors import FaaSMoEError

_PREFIXES = {"reasoning": "rs", "text": "msg", "tool_call": "fc"}
_PARTS = {"reasoning": "reasoning_text", "text": "output_text"}
_DELTAS = {
    "reasoning": "response.reasoning_text",
    "text": "response.output_text",
    "tool_call": "response.function_call_arguments",
}


class ResponseFormat:
    """Builds the answer to one request of the Responses API: see `AnswerFormat`."""

    def __init__(self, request: ResponseRequest, head: AnswerHead) -> None:
        self.request: GenerationRequest = request
        self._repeated = request.repeated
        self._answer = head
        self._blocks = Blocks()
        self._num_events = 0
        self._delta = ""
        """The beginning of an event that adds to the open block, up to its number."""

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> dict[str, Any]:
        """See `AnswerFormat`."""
        self._blocks.add_all(choices[0])
        return self._ended(usage)

    def begin(self, usage: Usage) -> bytes:
        """See `AnswerFormat`."""
        return self._opening()

    def piece(self, index: int, piece: Piece, usage: Usage) -> bytes:
        """See `AnswerFormat`."""
        return b"".join(self._change(*event) for event in self._blocks.add(piece))

    def end(self, usage: Usage) -> bytes:
        """See `AnswerFormat`."""
        response = self._ended(usage)
        return self._event(f"response.{response['status']}", response=response)

    def error(self, error: FaaSMoEError, request_id: str) -> bytes:
        """See `AnswerFormat`."""
        message = domain_error_body(error, request_id)["error"]["message"]
        failure = {"code": _code(KINDS[type(error)].status), "message": message}
        # Clients expect no other event to be the first.
        opening = b"" if self._num_events else self._opening()
        return opening + self._event("response.failed", response=self._response("failed", error=failure))

    def _opening(self) -> bytes:
        response = self._response("in_progress")
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    def _change(self, change: Change, block: Block, text: str) -> bytes:
        if change == Change.GREW:
            # One per token, so the JSON that they share is encoded once.
            return f'{self._delta}{self._number()},"delta":{to_json(text)}}}\n\n'.encode()
        return self._opened(block) if change == Change.OPENED else self._closed(block)

    def _opened(self, block: Block) -> bytes:
        kind = f"{_DELTAS[block.kind]}.delta"
        shared = to_json({"type": kind, **self._place(block), **_logprobs(block)})
        self._delta = f'event: {kind}\ndata: {shared[:-1]},"sequence_number":'
        item = self._item(block, "in_progress")
        added = self._event("response.output_item.added", item=item, output_index=block.index)
        if block.kind == "tool_call":
            return added
        return added + self._event("response.content_part.added", **self._place(block), part=_part(block, ""))

    def _closed(self, block: Block) -> bytes:
        text = block.text
        content = {"arguments": text} if block.kind == "tool_call" else {"text": text, **_logprobs(block)}
        done = self._event(f"{_DELTAS[block.kind]}.done", **self._place(block), **content)
        if block.kind != "tool_call":
            done += self._event("response.content_part.done", **self._place(block), part=_part(block, text))
        item = self._item(block, _status(block))
        return done + self._event("response.output_item.done", item=item, output_index=block.index)

    def _place(self, block: Block) -> dict[str, Any]:
        place = {"item_id": self._item_id(block), "output_index": block.index}
        return place if block.kind == "tool_call" else {**place, "content_index": 0}

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        """An item of the output, with its content unless it has just begun."""
        item: dict[str, Any] = {"id": self._item_id(block), "status": status}
        begun = status == "in_progress"
        if block.kind == "tool_call":
            call = {"call_id": block.call_id, "name": block.name, "arguments": "" if begun else block.text}
            return {"type": "function_call", **item, **call}
        content = [] if begun else [_part(block, block.text)]
        if block.kind == "reasoning":
            return {"type": "reasoning", **item, "summary": [], "content": content}
        return {"type": "message", **item, "role": "assistant", "content": content}

    def _item_id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self._answer.request_id}{block.index:04x}"

    def _ended(self, usage: Usage) -> dict[str, Any]:
        cut = self._blocks.finish_reason == FinishReason.LENGTH
        return self._response(
            "incomplete" if cut else "completed",
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            completed_at=None if cut else int(time.time()),
            output=[self._item(block, _status(block)) for block in self._blocks.all],
            usage=self._usage(usage),
        )

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._blocks.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        return {
            "id": f"resp_{self._answer.request_id}",
            "object": "response",
            "created_at": self._answer.created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._answer.model,
            "output": [],
            "usage": None,
            **self._repeated,
            **fields,
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = to_json({"type": kind, "sequence_number": self._number(), **fields})
        return f"event: {kind}\ndata: {data}\n\n".encode()

    def _number(self) -> int:
        """The number of the next event."""
        self._num_events += 1
        return self._num_events - 1


def _part(block: Block, text: str) -> dict[str, Any]:
    part = {"type": _PARTS[block.kind], "text": text}
    return {**part, "annotations": [], **_logprobs(block)} if block.kind == "text" else part


def _logprobs(block: Block) -> dict[str, Any]:
    """Clients expect them with text."""
    return {"logprobs": []} if block.kind == "text" else {}


def _status(block: Block) -> str:
    """A stream cannot take back half a call that it has begun."""
    return "incomplete" if block.cut or block.is_half_call else "completed"


def _code(status: int) -> str:
    """OpenAI's code for an answer that fails: it has no others that fit."""
    if status == 429:
        return "rate_limit_exceeded"
    return "server_error" if status >= 500 else "invalid_prompt"
