"""Answers made by hand, for tests of their forms in the APIs."""

import json
from collections.abc import Sequence
from typing import Any

import httpx2
from pydantic import BaseModel, TypeAdapter

from control_plane.api.text.answer_format import AnswerFormat, AnswerHead, Usage
from control_plane.api.text.choice import Piece, ToolCallPart
from control_plane.engine.state.sequence import FinishReason
from control_plane.errors import EngineError
from control_plane.faas.invocation import ExpertUsage

HEAD = AnswerHead("abc", "tiny", 1_700_000_000, "fp_1")
USAGE = Usage(5, 2, 3, ExpertUsage(invocations=7))

THINKING = [Piece("", reasoning="a cat", token_ids=(1, 2)), Piece("", reasoning=" sat?", token_ids=(3,))]
TEXT = [Piece("it "), Piece(""), Piece('"came"\u2028')]
CALLS = [
    Piece("", tool_calls=(ToolCallPart(0, "", "call_1", "look"),)),
    Piece("", tool_calls=(ToolCallPart(0, '{"place": '),)),
    Piece("", tool_calls=(ToolCallPart(0, '"mat"}'), ToolCallPart(1, "", "call_2", "wait"))),
]
END = Piece("", finish_reason=FinishReason.STOP)
CALLED = Piece("", finish_reason=FinishReason.TOOL_CALLS)
CUT = Piece("", finish_reason=FinishReason.LENGTH)


def streamed(answer: AnswerFormat, pieces: Sequence[Piece]) -> bytes:
    """The whole stream of an answer."""
    data = answer.begin(USAGE)
    for piece in pieces:
        data += answer.piece(0, piece, USAGE)
    return data + answer.end(USAGE)


def events(data: bytes) -> list[dict[str, Any]]:
    """The bodies of events, each of which has its type for a name, too."""
    *events, end = data.decode("ascii").split("\n\n")
    assert end == ""
    bodies = []
    for event in events:
        name, body = event.split("\n")
        bodies.append(json.loads(body.removeprefix("data: ")))
        assert name == f"event: {bodies[-1]['type']}"
    return bodies


def events_of(answer: AnswerFormat, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """The bodies of the events of an answer's whole stream."""
    return events(streamed(answer, pieces))


def check_that_nothing_is_revealed(answer: AnswerFormat) -> None:
    """Check that a stream which fails by the server's fault says only where the reason is."""
    data = answer.error(EngineError("/secret/path"), "id-5")
    assert b"secret" not in data
    assert b"id-5" in data


def check_events(union: Any, bodies: Sequence[dict[str, Any]]) -> None:
    """Check that each event has exactly the fields of its kind, which is one of a client's union."""
    kinds: TypeAdapter[Any] = TypeAdapter(union)
    for body in bodies:
        strictly(type(kinds.validate_python(body)), body)


def strictly(model: type[BaseModel], body: dict[str, Any]) -> None:
    """Check that the body has all fields that a client's model needs, and no others."""
    parsed = model.model_validate_json(json.dumps(body), strict=True)
    assert parsed.model_dump(exclude_unset=True, mode="json", by_alias=True) == body
    assert not parsed.model_extra


def server_with(answer: bytes, content_type: str) -> httpx2.Client:
    """A connection to a server that has one answer."""
    headers = {"Content-Type": content_type}
    return httpx2.Client(
        transport=httpx2.MockTransport(lambda _: httpx2.Response(200, content=answer, headers=headers))
    )
