"""OpenAI's client for Python."""

import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel

from tests.clients.conftest import MODEL, Server
from tests.clients.weather import (
    ARGUMENTS,
    MESSAGES,
    NAME,
    PARAMETERS,
    QUESTION,
    REPORT,
    RESULT,
    SHORT_FORECAST,
    TOOL,
    Forecast,
)

BATCH_SECONDS = 60
CHAT: Any = {"model": MODEL, "messages": MESSAGES}
RESPONSE: Any = {"model": MODEL, "input": QUESTION}
RESPONSE_TOOL: Any = {"type": "function", "name": NAME, "parameters": PARAMETERS, "strict": True}
NAMED: Any = {"type": "function", "function": {"name": NAME}}


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str


class File(BaseModel):
    """Its schema has a format that is none of JSON schema's."""

    path: Path


GET_WEATHER = pydantic_function_tool(GetWeather, name=NAME)


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=server.v1, api_key=server.key, max_retries=0)


def test_chats(client: OpenAI) -> None:
    choice = client.chat.completions.create(**CHAT).choices[0]
    assert (choice.message.content, choice.finish_reason) == (REPORT, "stop")
    chunks = client.chat.completions.create(**CHAT, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == REPORT
    with client.chat.completions.stream(**CHAT) as stream:
        assert "".join(event.delta for event in stream if event.type == "content.delta") == REPORT
        assert stream.get_final_completion().choices[0].message.content == REPORT


def test_structured_answers(client: OpenAI) -> None:
    whole = client.chat.completions.parse(**CHAT, response_format=Forecast)
    assert whole.choices[0].message.parsed == SHORT_FORECAST
    with client.chat.completions.stream(**CHAT, response_format=Forecast) as stream:
        (done,) = [event.parsed for event in stream if event.type == "content.done"]
    assert done == SHORT_FORECAST


def test_a_format_that_only_describes(client: OpenAI) -> None:
    answer = client.chat.completions.parse(**CHAT, response_format=File)
    assert answer.choices[0].message.parsed == File(path=Path())


@pytest.mark.parametrize(
    ("choice", "reason"), [("auto", "tool_calls"), ("required", "tool_calls"), (NAMED, "stop")]
)
def test_tools(client: OpenAI, choice: Any, reason: str) -> None:
    asked: Any = {**CHAT, "tools": [TOOL], "tool_choice": choice}
    whole = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        (done,) = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        streamed = stream.get_final_completion().choices[0]
    assert (done.name, json.loads(done.arguments)) == (NAME, ARGUMENTS)
    for found in (whole, streamed):
        assert (found.finish_reason, found.message.content) == (reason, None)
        (call,) = found.message.tool_calls or []
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == (NAME, ARGUMENTS)


def test_a_tool_s_result_is_reported(client: OpenAI) -> None:
    first = client.chat.completions.create(**CHAT, tools=[TOOL]).choices[0].message
    (call,) = first.tool_calls or []
    messages = [*MESSAGES, first, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])
    assert second.choices[0].message.content == REPORT


def test_a_tool_of_pydantic_s(client: OpenAI) -> None:
    answer = client.chat.completions.parse(**CHAT, tools=[GET_WEATHER])
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == GetWeather(**ARGUMENTS)


def test_responses(client: OpenAI) -> None:
    assert client.responses.create(**RESPONSE).output_text == REPORT
    assert client.responses.parse(**RESPONSE, text_format=Forecast).output_parsed == SHORT_FORECAST
    with client.responses.stream(**RESPONSE) as stream:
        assert (
            "".join(event.delta for event in stream if event.type == "response.output_text.delta") == REPORT
        )
    with client.responses.stream(**RESPONSE, text_format=Forecast) as parsing:
        assert parsing.get_final_response().output_parsed == SHORT_FORECAST


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "name": NAME}])
def test_tools_of_responses(client: OpenAI, choice: Any) -> None:
    asked: Any = {**RESPONSE, "tools": [RESPONSE_TOOL], "tool_choice": choice}
    call: Any
    streamed: Any
    with client.responses.stream(**asked) as stream:
        (streamed,) = stream.get_final_response().output
    (call,) = client.responses.create(**asked).output
    for found in (streamed, call):
        assert (found.type, found.name, json.loads(found.arguments)) == ("function_call", NAME, ARGUMENTS)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    items: Any = [{"role": "user", "content": QUESTION}, call, result]
    second = client.responses.create(model=MODEL, input=items, tools=[RESPONSE_TOOL])
    assert second.output_text == REPORT


def test_a_tool_of_pydantic_s_in_responses(client: OpenAI) -> None:
    (call,) = client.responses.parse(**RESPONSE, tools=[GET_WEATHER]).output
    assert call.type == "function_call"
    assert call.parsed_arguments == GetWeather(**ARGUMENTS)


def test_completions(client: OpenAI) -> None:
    prompt = "<|report|>"
    asked: Any = {"model": MODEL, "prompt": prompt}
    assert client.completions.create(**asked).choices[0].text == REPORT
    chunks = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == REPORT


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list()
    assert client.models.retrieve(MODEL) == model
    assert model.id == MODEL


def test_batches(client: OpenAI) -> None:
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
        for number in range(2)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("night.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    ends = time.monotonic() + BATCH_SECONDS
    while batch.status != "completed":
        assert time.monotonic() < ends, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert batch.output_file_id
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    contents = {
        answer["custom_id"]: answer["response"]["body"]["choices"][0]["message"]["content"]
        for answer in answers
    }
    assert contents == {"0": REPORT, "1": REPORT}
    assert batch.id in [each.id for each in client.batches.list()]
    assert client.files.delete(file.id).deleted


def test_errors(client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").chat.completions.create(**CHAT)
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4o'"):
        client.chat.completions.create(**{**CHAT, "model": "gpt-4o"})
    with pytest.raises(openai.BadRequestError, match="maximum context length is 32768 tokens") as raised:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a" * 40_000}])
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "messages")
