"""Pydantic AI, with its models for chats, for OpenAI's Responses API, and for Anthropic's API."""

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.conftest import MODEL, Server
from tests.clients.weather import QUESTION, REPORT, RESULT, SHORT_FORECAST, Forecast


@pytest.fixture(scope="module", params=[OpenAIChatModel, OpenAIResponsesModel, AnthropicModel])
def model(request: pytest.FixtureRequest, server: Server) -> Any:
    if request.param is AnthropicModel:
        anthropic = AnthropicProvider(base_url=server.url, api_key=server.key)
        # Pydantic AI asks no model for a schema whose name it does not know, unless its profile says so.
        return AnthropicModel(
            MODEL, provider=anthropic, profile=ModelProfile(supports_json_schema_output=True)
        )
    return request.param(MODEL, provider=OpenAIProvider(base_url=server.v1, api_key=server.key))


def test_text(model: Any) -> None:
    first = Agent(model, instructions="Be brief.").run_sync(QUESTION)
    assert first.output == REPORT
    assert Agent(model).run_sync("And now?", message_history=first.all_messages()).output == REPORT


@pytest.fixture
def cities() -> list[str]:
    """The cities with which `get_weather` was called."""
    return []


@pytest.fixture
def get_weather(cities: list[str]) -> Any:
    def get_weather(city: str) -> str:
        """The weather of a city."""
        cities.append(city)
        return RESULT

    return get_weather


def test_tools(model: Any, get_weather: Any, cities: list[str]) -> None:
    agent = Agent(model, tools=[get_weather])
    assert agent.run_sync(QUESTION).output == REPORT
    assert asyncio.run(_streamed(agent)) == REPORT
    assert cities == ["Rome", "Rome"]


@pytest.mark.parametrize("output", [Forecast, ToolOutput(Forecast), NativeOutput(Forecast)])
def test_output_types(model: Any, output: Any) -> None:
    agent = Agent(model, output_type=output)
    assert agent.run_sync(QUESTION).output == SHORT_FORECAST
    assert asyncio.run(_last_output(agent)) == SHORT_FORECAST


def test_an_output_type_beside_a_tool(model: Any, get_weather: Any, cities: list[str]) -> None:
    """The model may call the tool first. (`ToolOutput` demands calls, so this model would call for ever.)"""
    agent = Agent(model, tools=[get_weather], output_type=NativeOutput(Forecast))
    assert agent.run_sync(QUESTION).output == SHORT_FORECAST
    assert asyncio.run(_last_output(agent)) == SHORT_FORECAST
    assert cities == ["Rome", "Rome"]


class Anything(BaseModel):
    """Any object."""

    model_config = ConfigDict(extra="allow")


def test_prompted_output(server: Server) -> None:
    """The schema is in the prompt only, and the request asks for any object."""
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=server.v1, api_key=server.key))
    answer = Agent(model, output_type=PromptedOutput(Anything)).run_sync(QUESTION)
    assert answer.output.model_extra == {"": ""}


async def _streamed(agent: Any) -> str:
    async with agent.run_stream(QUESTION) as answer:
        return "".join([text async for text in answer.stream_text(delta=True)])


async def _last_output(agent: Any) -> Any:
    async with agent.run_stream(QUESTION) as answer:
        return [output async for output in answer.stream_output()][-1]
