"""Anthropic's client for Python."""

from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, beta_tool

from tests.clients.conftest import MODEL, Server
from tests.clients.weather import (
    ARGUMENTS,
    MESSAGES,
    NAME,
    PARAMETERS,
    REPORT,
    RESULT,
    SHORT_FORECAST,
    Forecast,
)

ASKED: Any = {"model": MODEL, "max_tokens": 500, "messages": MESSAGES}
TOOL: Any = {"name": NAME, "description": "The weather of a city.", "input_schema": PARAMETERS}


@pytest.fixture(scope="module")
def client(server: Server) -> Anthropic:
    return Anthropic(base_url=server.url, api_key=server.key, max_retries=0)


def only_block(message: Any) -> Any:
    (block,) = message.content
    return block


def test_messages(client: Anthropic) -> None:
    message = client.messages.create(**ASKED, system="Be brief.")
    assert (only_block(message).text, message.stop_reason) == (REPORT, "end_turn")
    with client.messages.stream(**ASKED) as stream:
        assert "".join(stream.text_stream) == REPORT
        assert only_block(stream.get_final_message()).text == REPORT


@pytest.mark.parametrize("choice", [{"type": "auto"}, {"type": "any"}, {"type": "tool", "name": NAME}])
def test_tools(client: Anthropic, choice: Any) -> None:
    asked: Any = {**ASKED, "tools": [TOOL], "tool_choice": choice}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        assert message.stop_reason == "tool_use"
        block = only_block(message)
        assert (block.type, block.name, block.input) == ("tool_use", NAME, ARGUMENTS)


def test_a_tool_s_result_is_reported(client: Anthropic) -> None:
    first = client.messages.create(**ASKED, tools=[TOOL])
    result: Any = {"type": "tool_result", "tool_use_id": only_block(first).id, "content": RESULT}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    second = client.messages.create(**{**ASKED, "messages": messages}, tools=[TOOL])
    assert (only_block(second).text, second.stop_reason) == (REPORT, "end_turn")


def test_tools_that_the_client_runs(client: Anthropic) -> None:
    asked = []

    @beta_tool
    def get_weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return RESULT

    last = client.beta.messages.tool_runner(**ASKED, tools=[get_weather]).until_done()
    assert (only_block(last).text, asked) == (REPORT, [ARGUMENTS["city"]])


def test_counting_tokens(client: Anthropic) -> None:
    asked: Any = {"model": MODEL, "messages": MESSAGES, "tools": [TOOL]}
    counted = client.messages.count_tokens(**asked).input_tokens
    usage = client.messages.create(**asked, max_tokens=500).usage
    # Tokens that were there from earlier requests are counted apart.
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_structured_answers(client: Anthropic) -> None:
    assert client.messages.parse(**ASKED, output_format=Forecast).parsed_output == SHORT_FORECAST
    with client.messages.stream(**ASKED, output_format=Forecast) as stream:
        assert stream.get_final_message().parsed_output == SHORT_FORECAST


def test_errors(server: Server, client: Anthropic) -> None:
    long: Any = [{"role": "user", "content": "a" * 40_000}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 32768 maximum"):
        client.messages.create(**{**ASKED, "messages": long})
    with pytest.raises(anthropic.NotFoundError, match="there is no model 'claude-unknown'"):
        client.messages.create(**{**ASKED, "model": "claude-unknown"})
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="wrong").messages.create(**ASKED)
