"""Tool calls and thinking in OpenAI's form, as its own client reads them."""

import json
from dataclasses import replace
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from control_plane.api.openai.answers import CompletionFormat
from control_plane.api.openai.requests import parse_chat
from control_plane.api.text.answer_format import AnswerHead, Usage
from control_plane.api.text.choice import BrokenCall, Piece, TokenEntry, ToolCallPart
from control_plane.api.text.request import ToolUse
from control_plane.engine.state.sequence import FinishReason
from control_plane.faas.invocation import ExpertUsage

USAGE = Usage(5, 2, 3, ExpertUsage())
TOOLS = (
    {"type": "function", "function": {"name": "time"}},
    {"type": "function", "function": {"name": "weather"}},
)
CALLS = FinishReason.TOOL_CALLS
PIECES = [
    Piece("", reasoning="Let me "),
    Piece("", reasoning="see."),
    Piece(""),
    Piece("", tool_calls=(ToolCallPart(0, "", "call_a", "weather"), ToolCallPart(0, '{"city'))),
    Piece("", tool_calls=(ToolCallPart(0, '": "Rome"}'), ToolCallPart(1, "", "call_b", "time"))),
    Piece("", tool_calls=(ToolCallPart(1, "{}"),)),
    Piece("", finish_reason=CALLS),
]
TOOL_CALLS = [
    {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
    {"id": "call_b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
]


def answer(choice: str = "auto", **body: Any) -> CompletionFormat:
    request = parse_chat({"messages": [{"role": "user", "content": "a"}], **body})
    return CompletionFormat(
        replace(request, tool_use=ToolUse(TOOLS, choice)), AnswerHead("abc", "tiny", 1_700_000_000, "fp_1")
    )


def whole(pieces: list[Piece], choice: str = "auto") -> Any:
    body = json.dumps(answer(choice).whole([pieces], USAGE))
    return ChatCompletion.model_validate_json(body, strict=True).model_dump(exclude_unset=True)["choices"][0]


def chunks(pieces: list[Piece], choice: str = "auto", **body: Any) -> list[ChatCompletionChunk]:
    stream = answer(choice, stream=True, **body)
    events = b"".join(stream.piece(0, piece, USAGE) for piece in pieces).decode().split("\n\n")[:-1]
    return [
        ChatCompletionChunk.model_validate_json(each.removeprefix("data: "), strict=True) for each in events
    ]


def accumulated(pieces: list[Piece], choice: str = "auto") -> Any:
    """The choice that OpenAI's client puts together from a stream."""
    state: Any = ChatCompletionStreamState(input_tools=[])
    for chunk in chunks(pieces, choice):
        state.handle_chunk(chunk)
    return state.current_completion_snapshot.model_dump(exclude_unset=True)["choices"][0]


def test_calls_and_thinking_of_a_whole_answer() -> None:
    choice = whole(PIECES)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Let me see.",
        "tool_calls": TOOL_CALLS,
    }
    assert whole([Piece("Yes. "), *PIECES])["message"]["content"] == "Yes. "


def test_a_stream_adds_up_to_the_whole_answer() -> None:
    choice = accumulated(PIECES)
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["content"], message["reasoning_content"]) == (None, "Let me see.")
    calls = [
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message["tool_calls"]
    ]
    assert calls == [("call_a", "weather", '{"city": "Rome"}'), ("call_b", "time", "{}")]


def test_deltas_of_calls_are_openai_s() -> None:
    deltas = [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in chunks(PIECES)]
    assert deltas[:3] == [
        {"role": "assistant", "content": None},
        {"reasoning_content": "Let me "},
        {"reasoning_content": "see."},
    ]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert calls == [
        {"index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city'}},
        {"index": 0, "function": {"arguments": '": "Rome"}'}},
        {"index": 1, "id": "call_b", "type": "function", "function": {"name": "time", "arguments": ""}},
        {"index": 1, "function": {"arguments": "{}"}},
    ]
    assert not any("content" in delta for delta in deltas[1:])


@pytest.mark.parametrize(
    ("choice", "reason"), [("auto", "tool_calls"), ("required", "tool_calls"), ("time", "stop")]
)
def test_the_call_of_a_named_tool_is_an_ordinary_end(choice: str, reason: str) -> None:
    assert whole(PIECES, choice)["finish_reason"] == reason
    assert accumulated(PIECES, choice)["finish_reason"] == reason


def test_a_cut_call_is_text_in_a_whole_answer() -> None:
    pieces = [
        Piece("Well: ", tool_calls=(ToolCallPart(0, "", "call_a", "weather"), ToolCallPart(0, '{"ci'))),
        Piece("", finish_reason=FinishReason.LENGTH, broken_calls=(BrokenCall(0, '{"name": ... {"ci', 0),)),
    ]
    choice = whole(pieces)
    assert choice["message"] == {"role": "assistant", "content": 'Well: {"name": ... {"ci'}
    assert choice["finish_reason"] == "length"
    assert accumulated(pieces)["finish_reason"] == "length"


def test_each_token_s_log_probability_is_in_one_chunk() -> None:
    entry = TokenEntry(2, " caf", b" caf", -1.5, 7, ())
    pieces = [replace(piece, logprobs=(entry,)) for piece in PIECES]
    found = [chunk.choices[0].logprobs for chunk in chunks(pieces, logprobs=True)]
    assert sum(len(each.content or ()) for each in found if each) == len(PIECES)
