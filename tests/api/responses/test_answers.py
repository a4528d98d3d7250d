"""Answers of the Responses API have the form that OpenAI's client declares, and the client reads them."""

import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from control_plane.api.responses.answers import ResponseFormat
from control_plane.api.responses.requests import parse_response
from control_plane.api.text.choice import Piece
from control_plane.errors import RequestTimeout
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
    events,
    events_of,
    server_with,
    streamed,
    strictly,
)

LOOK = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {}},
    "strict": True,
}


def answer(**body: Any) -> ResponseFormat:
    return ResponseFormat(parse_response({"input": "a", **body}), HEAD)


def client(data: bytes, content_type: str = "text/event-stream") -> openai.OpenAI:
    return openai.OpenAI(api_key="any", http_client=server_with(data, content_type))


def output_of(body: dict[str, Any]) -> list[tuple[str, str]]:
    """The kinds and the states of the items."""
    return [(item["type"], item["status"]) for item in body["output"]]


def test_a_whole_answer() -> None:
    body = answer().whole([[*THINKING, *TEXT, END]], USAGE)
    strictly(Response, body)
    assert (body["id"], body["object"], body["model"]) == ("resp_abc", "response", "tiny")
    assert (body["status"], body["incomplete_details"], body["error"]) == ("completed", None, None)
    assert output_of(body) == [("reasoning", "completed"), ("message", "completed")]
    assert body["output"][0]["content"] == [{"type": "reasoning_text", "text": "a cat sat?"}]
    assert body["output"][1]["content"][0]["text"] == 'it "came"\u2028'
    assert body["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 8,
    }


def test_an_answer_repeats_what_was_asked() -> None:
    asked: Any = {
        "instructions": "be brief",
        "max_output_tokens": 7,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "summary": None},
        "temperature": 0.5,
        "text": {"format": {"type": "json_schema", "name": "cat", "schema": {"default": None}}},
        "tool_choice": {"type": "function", "name": "look"},
        "tools": [{**LOOK, "description": "sees"}],
        "top_p": 0.25,
        "truncation": "auto",
        "user": "acme",
    }
    body = answer(**asked).whole([[*TEXT, END]], USAGE)
    strictly(Response, body)
    assert {name: body[name] for name in asked} == asked


def test_calls_of_tools() -> None:
    body = answer(tools=[LOOK]).whole([[*CALLS, CALLED]], USAGE)
    strictly(Response, body)
    look, wait = body["output"]
    assert {**look, "id": ""} == {
        "id": "",
        "type": "function_call",
        "status": "completed",
        "call_id": "call_1",
        "name": "look",
        "arguments": '{"place": "mat"}',
    }
    assert (wait["name"], wait["arguments"]) == ("wait", "")


def test_an_answer_that_reaches_its_limit_is_incomplete() -> None:
    body = answer().whole([[*TEXT, CUT]], USAGE)
    strictly(Response, body)
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert output_of(body) == [("message", "incomplete")]


@pytest.mark.parametrize(("last", "status"), [(END, "completed"), (CUT, "incomplete")])
def test_half_a_call_is_text_and_a_stream_that_has_begun_it_says_so(last: Piece, status: str) -> None:
    pieces = [*CALLS[:2], last]
    body = answer().whole([pieces], USAGE)
    strictly(Response, body)
    assert (body["status"], output_of(body)) == (status, [("message", status)])
    assert body["output"][0]["content"][0]["text"] == '{"place": '
    response = events_of(answer(), pieces)[-1]["response"]
    assert (response["status"], output_of(response)) == (status, [("function_call", "incomplete")])


@pytest.mark.parametrize("last", [END, CUT])
def test_every_event_of_a_stream_has_its_form(last: Piece) -> None:
    pieces = [*THINKING, *TEXT, *CALLS, last]
    found = events_of(answer(tools=[LOOK]), pieces)
    check_events(ResponseStreamEvent, found)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    message = [event["type"].removeprefix("response.") for event in found if event.get("output_index") == 1]
    assert message == [
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 2,
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]
    call = [event["type"].removeprefix("response.") for event in found if event.get("output_index") == 2]
    assert call == [
        "output_item.added",
        *["function_call_arguments.delta"] * 2,
        "function_call_arguments.done",
        "output_item.done",
    ]
    thinking = [event["type"] for event in found if event.get("output_index") == 0]
    assert thinking[2:5] == [*["response.reasoning_text.delta"] * 2, "response.reasoning_text.done"]


@pytest.mark.parametrize("last", [END, CUT])
def test_a_stream_ends_with_the_whole_answer(last: Piece) -> None:
    pieces = [*THINKING, *TEXT, *CALLS, last]
    body = events_of(answer(), pieces)[-1]["response"]
    whole = answer().whole([pieces], USAGE)
    assert {**body, "completed_at": None} == {**whole, "completed_at": None}


def test_the_client_s_own_stream() -> None:
    data = streamed(answer(tools=[LOOK]), [*THINKING, *TEXT, *CALLS, CALLED])
    with client(data).responses.stream(model="tiny", input="a") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == 'it "came"\u2028'
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]


def test_the_client_reads_a_whole_answer() -> None:
    body = json.dumps(answer().whole([[*TEXT, END]], USAGE)).encode()
    found = client(body, "application/json").responses.create(model="tiny", input="a")
    assert (found.output_text, found.status) == ('it "came"\u2028', "completed")


def test_a_stream_that_fails() -> None:
    stream = answer()
    data = (
        stream.begin(USAGE) + stream.piece(0, TEXT[0], USAGE) + stream.error(RequestTimeout("late"), "id-5")
    )
    last = list(client(data).responses.create(model="tiny", input="a", stream=True))[-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None
    assert (last.response.error.code, last.response.error.message) == ("server_error", "late")
    strictly(type(last), events(data)[-1])


def test_a_stream_that_fails_before_its_first_event() -> None:
    data = answer().error(RequestTimeout("late"), "id-5")
    with client(data).responses.stream(model="tiny", input="a") as stream:
        found = [event.type for event in stream]
    assert found == ["response.created", "response.in_progress", "response.failed"]


def test_an_error_of_the_server_s_reveals_nothing() -> None:
    check_that_nothing_is_revealed(answer())
