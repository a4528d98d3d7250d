"""Calls and structures over HTTP, by a model that knows nothing and has no format of its own."""

import json
from typing import Any

import jsonschema
import pytest

from tests.support.api.api_server import ApiClient

pytestmark = pytest.mark.slow

ASK: Any = [{"role": "user", "content": "the cat"}]
AGE: Any = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["age"],
    "additionalProperties": False,
}
CITY: Any = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
BAD: Any = {"type": "object", "properties": {"a": {"not": {}}}}
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def chat_tool(name: str, parameters: Any) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def response_tool(name: str, parameters: Any) -> Any:
    return {"type": "function", "name": name, "parameters": parameters}


def test_answers_with_tools_and_a_structure_are_calls_or_the_structure(api: ApiClient) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "age", "schema": AGE}}
    body = {"messages": ASK, "tools": [chat_tool("weather", CITY)], "response_format": form}
    choices = api.post(CHAT, **body, n=64, temperature=2, seed=1, max_tokens=200)["choices"]
    for choice in choices:
        message = choice["message"]
        if choice["finish_reason"] == "tool_calls":
            assert message["content"] is None
            for call in message["tool_calls"]:
                assert call["function"]["name"] == "weather"
                jsonschema.validate(json.loads(call["function"]["arguments"]), CITY)
        else:
            assert choice["finish_reason"] == "stop"
            assert "tool_calls" not in message
            jsonschema.validate(json.loads(message["content"]), AGE)
    assert {choice["finish_reason"] for choice in choices} == {"tool_calls", "stop"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            RESPONSES,
            {
                "tools": [response_tool("weather", CITY)],
                "text": {"format": {"type": "json_schema", "name": "age", "schema": AGE}},
            },
        ),
        (
            MESSAGES,
            {
                "tools": [{"name": "weather", "input_schema": CITY}],
                "output_config": {"format": {"type": "json_schema", "schema": AGE}},
            },
        ),
    ],
)
def test_the_other_apis_do_as_well(api: ApiClient, path: str, body: Any) -> None:
    is_response = path == RESPONSES
    asked = {"max_output_tokens": 200, "input": ASK} if is_response else {"max_tokens": 200, "messages": ASK}
    answer = api.post(path, **asked, **body, temperature=0)
    part = answer["output"][0] if is_response else answer["content"][0]
    match part["type"]:
        case "function_call":
            jsonschema.validate(json.loads(part["arguments"]), CITY)
        case "tool_use":
            jsonschema.validate(part["input"], CITY)
        case _:
            text = part["content"][0]["text"] if is_response else part["text"]
            jsonschema.validate(json.loads(text), AGE)


GOOD = chat_tool("good", CITY)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {"response_format": {"type": "json_object", "schema": BAD}}, "response_format"),
        (CHAT, {"structured_outputs": {"json": BAD}}, "structured_outputs.json"),
        (CHAT, {"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        (CHAT, {"guided_json": BAD}, "guided_json"),
        (CHAT, {"guided_regex": "("}, "guided_regex"),
        (CHAT, {"guided_grammar": "start: other"}, "guided_grammar"),
        (CHAT, {"tools": [GOOD, chat_tool("bad", BAD)], "tool_choice": "required"}, "tools.bad"),
        (CHAT, {"tools": [chat_tool("bad", BAD)], "guided_json": AGE}, "tools.bad"),
        (CHAT, {"tools": [GOOD], "guided_json": BAD}, "guided_json"),
        (
            RESPONSES,
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": BAD}}},
            "text.format.schema",
        ),
        (RESPONSES, {"tools": [response_tool("bad", BAD)], "tool_choice": "required"}, "tools.bad"),
        (
            MESSAGES,
            {"output_config": {"format": {"type": "json_schema", "schema": BAD}}},
            "output_config.format.schema",
        ),
        (
            MESSAGES,
            {"tools": [{"name": "bad", "input_schema": BAD}], "tool_choice": {"type": "any"}},
            "tools.bad",
        ),
    ],
)
def test_errors_name_the_field_that_the_client_sent(api: ApiClient, path: str, body: Any, field: str) -> None:
    limit = {"input": ASK} if path == RESPONSES else {"messages": ASK, "max_tokens": 9}
    status, answer = api.ask("POST", path, {**limit, **body})
    assert status == 400
    assert answer["error"]["message"].startswith(f"{field}: ")
    if path != MESSAGES:
        assert answer["error"]["param"] == field


def test_prompts_are_counted_as_they_are_generated_from(api: ApiClient) -> None:
    """The chat template knows no tools, so they are told in text."""
    one: Any = {"max_tokens": 1}
    plain = api.post(CHAT, messages=ASK, **one)["usage"]["prompt_tokens"]
    chat: Any = {"messages": ASK, "tools": [chat_tool("weather", CITY)]}
    told = api.post(CHAT, **chat, **one)["usage"]["prompt_tokens"]
    assert api.post("/tokenize", **chat)["count"] == told > plain
    message: Any = {"messages": ASK, "tools": [{"name": "weather", "input_schema": CITY}]}
    counted = api.post(f"{MESSAGES}/count_tokens", **message)["input_tokens"]
    usage = api.post(MESSAGES, **message, **one)["usage"]
    # Anthropic's API counts tokens that were there apart.
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"] == told


def test_a_structure_that_does_not_count_is_not_compiled(api: ApiClient) -> None:
    body = {"tools": [chat_tool("weather", CITY)], "tool_choice": "required", "guided_json": BAD}
    one_call: Any = {"parallel_tool_calls": False, "max_tokens": 200, "seed": 1}
    (choice,) = api.post(CHAT, messages=ASK, **body, **one_call)["choices"]
    assert choice["finish_reason"] == "tool_calls"
