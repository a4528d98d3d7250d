"""The bodies of answers have exactly the fields that OpenAI's client declares."""

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from control_plane.api.openai.answers import (
    DONE,
    CompletionFormat,
    detokenize_body,
    tokenize_body,
    usage_body,
    usage_with_experts,
)
from control_plane.api.openai.logprobs import logprobs_body
from control_plane.api.openai.requests import parse_chat, parse_completion
from control_plane.api.text.answer_format import AnswerHead, Usage
from control_plane.api.text.choice import Alternative, Piece, TokenEntry
from control_plane.engine.state.sequence import FinishReason
from control_plane.faas.invocation import ExpertUsage

STOP = FinishReason.STOP
USAGE = Usage(5, 2, 3, ExpertUsage(invocations=7))
THE = Alternative(1, " the", b" the", -0.25)
ENTRY = TokenEntry(2, " caf", b" caf", -1.5, 7, (THE, Alternative(2, " caf", b" caf", -1.5)))
FRAGMENT = TokenEntry(3, "", b"\xc3", -2.0, 11, ())
TEXTS = ["", 'a "quoted" text', "line\nbreak\u2028\x85", "naïve 漢字 \N{GRINNING FACE}", "\ufffd\x00\\"]


def answer(kind: str, **body: Any) -> CompletionFormat:
    request = (
        parse_chat({"messages": [{"role": "user", "content": "a"}], **body})
        if kind == "chat"
        else parse_completion({"prompt": "a", **body})
    )
    return CompletionFormat(request, AnswerHead("abc", "tiny", 1_700_000_000, "fp_1"))


def streamed(**body: Any) -> dict[str, Any]:
    return {"stream": True, **body}


def strictly(model: type[BaseModel], body: dict[str, Any]) -> dict[str, Any]:
    """Check that the body has all fields that the client's model declares and no others; returns it."""
    parsed = model.model_validate_json(json.dumps(body), strict=True)
    assert parsed.model_dump(exclude_unset=True, mode="json") == body
    assert not parsed.model_extra
    return body


def events(data: bytes) -> list[dict[str, Any]]:
    """The bodies of events. Checks that no event contains a line break."""
    *lines, end = data.decode("ascii").split("\n\n")
    assert end == ""
    assert all(len(line.splitlines()) == 1 for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_whole_chat() -> None:
    choices = [
        [Piece("it "), Piece("came", finish_reason=STOP)],
        [Piece("to", finish_reason=FinishReason.LENGTH)],
    ]
    body = strictly(ChatCompletion, answer("chat", n=2).whole(choices, USAGE))
    assert (body["id"], body["object"], body["model"]) == ("chatcmpl-abc", "chat.completion", "tiny")
    assert (body["created"], body["system_fingerprint"]) == (1_700_000_000, "fp_1")
    assert body["choices"] == [
        {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": reason,
        }
        for index, (text, reason) in enumerate([("it came", "stop"), ("to", "length")])
    ]
    assert usage_body(USAGE) == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert body["usage"] == usage_with_experts(USAGE)


def test_a_whole_completion() -> None:
    body = strictly(Completion, answer("text", n=1).whole([[Piece("it "), Piece("came", (), STOP)]], USAGE))
    assert (body["id"], body["object"]) == ("cmpl-abc", "text_completion")
    assert body["choices"] == [{"index": 0, "text": "it came", "logprobs": None, "finish_reason": "stop"}]


def test_the_log_probabilities_of_a_chat() -> None:
    pieces = [Piece(" caf", (ENTRY,)), Piece("", (FRAGMENT,), STOP)]
    body = strictly(ChatCompletion, answer("chat", logprobs=True, top_logprobs=2).whole([pieces], USAGE))
    first, second = body["choices"][0]["logprobs"]["content"]
    assert {**first, "top_logprobs": []} == {
        "token": " caf",
        "logprob": -1.5,
        "bytes": [32, 99, 97, 102],
        "top_logprobs": [],
    }
    assert [top["token"] for top in first["top_logprobs"]] == [" the", " caf"]
    assert second["bytes"] == [0xC3]


def test_the_log_probabilities_of_a_completion() -> None:
    pieces = [Piece(" caf", (ENTRY,)), Piece("", (FRAGMENT,), STOP)]
    body = strictly(Completion, answer("text", logprobs=2).whole([pieces], USAGE))
    assert body["choices"][0]["logprobs"] == {
        "text_offset": [7, 11],
        "token_logprobs": [-1.5, -2.0],
        "tokens": [" caf", ""],
        "top_logprobs": [{" the": -0.25, " caf": -1.5}, {"": -2.0}],
    }


def test_the_first_token_of_an_echoed_prompt_has_no_log_probability() -> None:
    first = TokenEntry(9, "it", b"it", None, 0, ())
    body = logprobs_body([first, ENTRY], is_chat=False)
    assert body["token_logprobs"] == [None, -1.5]
    assert body["top_logprobs"] == [None, {" the": -0.25, " caf": -1.5}]


@pytest.mark.parametrize(
    ("chosen", "others", "top"),
    [
        # Of tokens with the same text, the likeliest counts.
        (-3.0, [("b", -0.1), ("b", -0.2)], {"b": -0.1, "a": -3.0}),
        # The chosen token keeps its value, and the likeliest entry stays the likeliest.
        (-3.0, [("a", -0.1)], {"token_id:10": -0.1, "a": -3.0}),
        (-0.1, [("a", -3.0)], {"a": -0.1, "token_id:10": -3.0}),
    ],
)
def test_tokens_with_the_same_text(
    chosen: float, others: list[tuple[str, float]], top: dict[str, float]
) -> None:
    alternatives = tuple(
        Alternative(number, text, text.encode(), value)
        for number, (text, value) in enumerate(others, start=10)
    )
    entry = TokenEntry(1, "a", b"a", chosen, 0, alternatives)
    assert logprobs_body([entry], is_chat=False)["top_logprobs"] == [top]


def test_a_streamed_chat() -> None:
    stream = answer("chat", **streamed())
    pieces = [*(Piece(text) for text in TEXTS), Piece("end", (), STOP)]
    bodies = [
        strictly(ChatCompletionChunk, body)
        for piece in pieces
        for body in events(stream.piece(1, piece, USAGE))
    ]
    choices = [choice for body in bodies for choice in body["choices"]]
    deltas = [choice["delta"] for choice in choices]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas[1:-1]] == [*TEXTS, "end"]
    assert deltas[-1] == {}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert {choice["index"] for choice in choices} == {1}
    assert {(body["id"], body["object"]) for body in bodies} == {("chatcmpl-abc", "chat.completion.chunk")}
    assert {(body["created"], body["system_fingerprint"]) for body in bodies} == {(1_700_000_000, "fp_1")}
    assert not any("usage" in body for body in bodies)


def test_a_streamed_completion() -> None:
    stream = answer("text", **streamed())
    pieces = [*(Piece(text) for text in TEXTS), Piece("end", (), STOP)]
    bodies = [body for piece in pieces for body in events(stream.piece(0, piece, USAGE))]
    assert [body["choices"][0]["text"] for body in bodies] == [*TEXTS, "end"]
    assert [body["choices"][0]["finish_reason"] for body in bodies] == [None] * len(TEXTS) + ["stop"]
    assert {(body["id"], body["object"]) for body in bodies} == {("cmpl-abc", "text_completion")}
    # The client has no type for chunks of completions. The type of whole answers needs a reason in each.
    for body in bodies:
        choices = [{**choice, "finish_reason": "stop"} for choice in body["choices"]]
        strictly(Completion, {**body, "choices": choices})


def test_the_end_of_a_chat_without_text() -> None:
    stream = answer("chat", **streamed())
    (opening, end) = events(stream.piece(0, Piece("", (), STOP), USAGE))
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == ({}, "stop")


def test_streamed_log_probabilities() -> None:
    pieces = [Piece(" caf", (ENTRY,)), Piece("", (FRAGMENT,), STOP)]
    stream = answer("chat", **streamed(logprobs=True, top_logprobs=2))
    bodies = [
        strictly(ChatCompletionChunk, body)
        for piece in pieces
        for body in events(stream.piece(0, piece, USAGE))
    ]
    logprobs = [choice["logprobs"] for body in bodies for choice in body["choices"]]
    expected = [logprobs_body([entry], is_chat=True) for entry in (ENTRY, FRAGMENT)]
    assert logprobs == [None, *expected, None]

    text_stream = answer("text", **streamed(logprobs=2))
    bodies = [body for piece in pieces for body in events(text_stream.piece(0, piece, USAGE))]
    assert [body["choices"][0]["logprobs"] for body in bodies] == [
        logprobs_body([entry], is_chat=False) for entry in (ENTRY, FRAGMENT)
    ]


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_usage_in_a_stream(kind: str) -> None:
    asked = answer(kind, **streamed(stream_options={"include_usage": True}))
    bodies = [body for text in ("a", "b") for body in events(asked.piece(0, Piece(text), USAGE))]
    assert [body["usage"] for body in bodies] == [None] * len(bodies)
    end = asked.end(USAGE)
    assert end.endswith(DONE)
    (last,) = events(end.removesuffix(DONE))
    assert (last["choices"], last["id"]) == ([], bodies[0]["id"])
    assert last["usage"] == usage_with_experts(USAGE)
    strictly(ChatCompletionChunk if kind == "chat" else Completion, last)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_continuous_usage(kind: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = answer(kind, **streamed(stream_options=options))
    for number in range(1, 4):
        usage = usage_body(Usage(5, 2, number, ExpertUsage()))
        piece = Piece("a", (), STOP if number == 3 else None)
        cost = Usage(5, 2, number, ExpertUsage())
        assert all(body["usage"] == usage for body in events(stream.piece(0, piece, cost)))


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_token_ids_are_returned_if_requested(kind: str) -> None:
    pieces = [Piece("a", (), None, (5,)), Piece("b", (), None, (6,)), Piece("", (), STOP, (7,))]
    asked = answer(kind, **streamed(return_token_ids=True))
    choices = [body["choices"][0] for piece in pieces for body in events(asked.piece(0, piece, USAGE))]
    assert [token for choice in choices for token in choice.get("token_ids", ())] == [5, 6, 7]
    assert asked.whole([pieces], USAGE)["choices"][0]["token_ids"] == [5, 6, 7]
    unasked = answer(kind, **streamed())
    assert b"token_ids" not in b"".join(unasked.piece(0, piece, USAGE) for piece in pieces)
    assert "token_ids" not in unasked.whole([pieces], USAGE)["choices"][0]


def test_bodies_of_tokenize_and_detokenize() -> None:
    assert tokenize_body([5, 6], 128) == {"count": 2, "max_model_len": 128, "tokens": [5, 6]}
    assert detokenize_body("a") == {"prompt": "a"}
