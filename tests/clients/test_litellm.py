"""LiteLLM, as a library and as a proxy in front of the server."""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.clients.conftest import MODEL, Server, running
from tests.clients.weather import (
    ARGUMENTS,
    MESSAGES,
    NAME,
    REPORT,
    RESULT,
    SHORT_FORECAST,
    TOOL,
    Forecast,
)

# Without it, the import asks the internet for prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

TOO_LONG: Any = [{"role": "user", "content": "a" * 40_000}]
ALIAS = "local"
"""The model's name at the proxy."""
PROXY_KEY = "sk-proxy"


@pytest.fixture(scope="module")
def asked(server: Server) -> Any:
    return {
        "model": f"openai/{MODEL}",
        "api_base": server.v1,
        "api_key": server.key,
        "messages": MESSAGES,
    }


def test_completions(asked: Any) -> None:
    assert litellm.completion(**asked).choices[0].message.content == REPORT
    chunks = litellm.completion(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == REPORT
    assert asyncio.run(litellm.acompletion(**asked)).choices[0].message.content == REPORT


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": NAME}}])
def test_tools(asked: Any, choice: Any) -> None:
    message = litellm.completion(**asked, tools=[TOOL], tool_choice=choice).choices[0].message
    chunks = list(litellm.completion(**asked, tools=[TOOL], tool_choice=choice, stream=True))
    streamed = litellm.stream_chunk_builder(chunks).choices[0].message
    for found in (message, streamed):
        (call,) = found.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == (NAME, ARGUMENTS)
    (call,) = message.tool_calls
    messages = [*MESSAGES, message, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    second = litellm.completion(**{**asked, "messages": messages}, tools=[TOOL])
    assert second.choices[0].message.content == REPORT


def test_structured_answers(asked: Any) -> None:
    answer = litellm.completion(**asked, response_format=Forecast)
    assert Forecast.model_validate_json(answer.choices[0].message.content) == SHORT_FORECAST


def test_errors(asked: Any) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**{**asked, "messages": TOO_LONG})
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**asked, "api_key": "wrong"})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**asked, "model": "openai/gpt-4o"})


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A client of a proxy that is in front of the server."""
    folder = tmp_path_factory.mktemp("proxy")
    model = {"model": f"openai/{MODEL}", "api_base": server.v1, "api_key": server.key}
    config = {
        "model_list": [{"model_name": ALIAS, "litellm_params": model}],
        "general_settings": {"master_key": PROXY_KEY},
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML.
    program = str(Path(sys.executable).with_name("litellm"))
    command = [program, "--config", str(file), "--host", "127.0.0.1", "--port", "0"]
    with running(command, r"Uvicorn running on (\S+)", folder / "log", dict(os.environ)) as url:
        yield OpenAI(base_url=url, api_key=PROXY_KEY, max_retries=0)


def test_the_proxy(proxy: OpenAI) -> None:
    asked: Any = {"model": ALIAS, "messages": MESSAGES}
    assert proxy.chat.completions.create(**asked).choices[0].message.content == REPORT
    with proxy.chat.completions.stream(**asked) as stream:
        assert stream.get_final_completion().choices[0].message.content == REPORT
    parsed = proxy.chat.completions.parse(**asked, response_format=Forecast)
    assert parsed.choices[0].message.parsed == SHORT_FORECAST
    (call,) = proxy.chat.completions.create(**asked, tools=[TOOL]).choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == (NAME, ARGUMENTS)
    with proxy.chat.completions.stream(**asked, tools=[TOOL], tool_choice="required") as calling:
        (done,) = [event for event in calling if event.type == "tool_calls.function.arguments.done"]
    assert json.loads(done.arguments) == ARGUMENTS
    assert proxy.responses.create(model=ALIAS, input="How is it?").output_text == REPORT
    with pytest.raises(openai.BadRequestError, match="ContextWindowExceededError"):
        proxy.chat.completions.create(model=ALIAS, messages=TOO_LONG)
