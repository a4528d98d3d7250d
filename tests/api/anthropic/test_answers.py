"""Answers of the Messages API have the form that Anthropic's client declares, and the client reads them."""

from typing import Any

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent

from control_plane.api.anthropic.answers import MessageFormat
from control_plane.api.anthropic.errors import error_body, error_status
from control_plane.api.anthropic.requests import parse_message
from control_plane.api.text.choice import Piece
from control_plane.engine.state.sequence import FinishReason
from control_plane.errors import Overloaded
from tests.support.api.answers import (
    CALLED,
    CALLS,
    CUT,
    END,
    HEAD,
    TEXT,
    THINKING,
    USAGE,
    check_events,
    check_that_nothing_is_revealed,
    events_of,
    server_with,
    streamed,
    strictly,
)

ASKED: Any = {"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]}
STOPPED = Piece("", finish_reason=FinishReason.STOP, stop_string="END")


def answer(**body: Any) -> MessageFormat:
    return MessageFormat(parse_message({**ASKED, **body}), HEAD)


def client(data: bytes) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key="any", http_client=server_with(data, "text/event-stream"), max_retries=0
    )


def test_a_whole_answer() -> None:
    body = answer().whole([[*THINKING, *TEXT, *CALLS, CALLED]], USAGE)
    strictly(Message, body)
    assert body == {
        "id": "msg_abc",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [
            {"type": "thinking", "thinking": "a cat sat?", "signature": ""},
            {"type": "text", "text": 'it "came"\u2028'},
            {"type": "tool_use", "id": "call_1", "name": "look", "input": {"place": "mat"}},
            {"type": "tool_use", "id": "call_2", "name": "wait", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 3,
            "output_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 2,
        },
    }


@pytest.mark.parametrize(
    ("last", "reason", "sequence"),
    [
        (END, "end_turn", None),
        (CUT, "max_tokens", None),
        (CALLED, "tool_use", None),
        (STOPPED, "stop_sequence", "END"),
    ],
)
def test_why_an_answer_ends(last: Piece, reason: str, sequence: str | None) -> None:
    body = answer().whole([[*TEXT, last]], USAGE)
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, sequence)
    delta = events_of(answer(), [*TEXT, last])[-2]["delta"]
    assert delta == {"stop_reason": reason, "stop_sequence": sequence}


def test_half_a_call_is_text() -> None:
    body = answer().whole([[*CALLS[:2], CUT]], USAGE)
    assert body["content"] == [{"type": "text", "text": '{"place": '}]


def test_every_event_of_a_stream_has_its_form() -> None:
    found = events_of(answer(), [*THINKING, *TEXT, *CALLS, CALLED])
    assert found.pop(1) == {"type": "ping"}
    check_events(RawMessageStreamEvent, found)
    deltas = ["content_block_delta"] * 2
    assert [event["type"] for event in found] == [
        "message_start",
        *["content_block_start", *deltas, "content_block_stop"] * 3,
        *["content_block_start", "content_block_stop"],
        "message_delta",
        "message_stop",
    ]


def test_the_client_s_own_stream() -> None:
    pieces = [*THINKING, *TEXT, *CALLS, CALLED]
    with client(streamed(answer(), pieces)).messages.stream(**ASKED) as stream:
        assert "".join(stream.text_stream) == 'it "came"\u2028'
        final = stream.get_final_message()
    whole = Message.model_validate(answer().whole([pieces], USAGE))
    assert final.model_dump(exclude_none=True, exclude={"content": {"__all__": {"parsed_output"}}}) == (
        whole.model_dump(exclude_none=True)
    )


def test_a_stream_that_fails() -> None:
    stream = answer()
    failure = stream.error(Overloaded("too many", 1.0), "id-5")
    data = stream.begin(USAGE) + stream.piece(0, TEXT[0], USAGE) + failure
    with pytest.raises(anthropic.APIStatusError, match="too many") as raised:
        list(client(data).messages.create(**ASKED, stream=True))
    assert raised.value.type == "overloaded_error"


def test_an_error_of_the_server_s_reveals_nothing() -> None:
    check_that_nothing_is_revealed(answer())


@pytest.mark.parametrize(
    ("status", "kind", "sent"),
    [
        (400, "invalid_request_error", 400),
        (401, "authentication_error", 401),
        (404, "not_found_error", 404),
        (413, "request_too_large", 413),
        (415, "invalid_request_error", 415),
        (429, "rate_limit_error", 429),
        (500, "api_error", 500),
        (502, "api_error", 502),
        (503, "overloaded_error", 529),
        (504, "timeout_error", 504),
    ],
)
def test_types_of_errors(status: int, kind: str, sent: int) -> None:
    assert error_body(status, "why", "id-5") == {
        "type": "error",
        "error": {"type": kind, "message": "why"},
        "request_id": "id-5",
    }
    assert error_status(status) == sent
