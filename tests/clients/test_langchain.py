"""LangChain's client for OpenAI's APIs: that of chats, and that of responses."""

from typing import Any

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

from tests.clients.conftest import MODEL, Server
from tests.clients.weather import ARGUMENTS, NAME, QUESTION, REPORT, RESULT, SHORT_FORECAST, Forecast


def get_weather(city: str) -> str:
    """The weather of a city."""
    return RESULT


@pytest.fixture(scope="module", params=["chats", "responses"])
def model(request: pytest.FixtureRequest, server: Server) -> Any:
    return ChatOpenAI(
        model=MODEL,
        base_url=server.v1,
        api_key=server.key,
        max_retries=0,
        use_responses_api=request.param == "responses",
    )


def test_answers_and_streams(model: Any) -> None:
    assert model.invoke(QUESTION).text == REPORT
    assert "".join(chunk.text for chunk in model.stream(QUESTION)) == REPORT


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_answers(model: Any, method: str) -> None:
    assert model.with_structured_output(Forecast, method=method).invoke(QUESTION) == SHORT_FORECAST


def test_json_without_a_schema(model: Any) -> None:
    # Any object is valid. This is the shortest one that the model writes.
    assert model.with_structured_output(None, method="json_mode").invoke(f"{QUESTION} JSON.") == {"": ""}


@pytest.mark.parametrize("choice", ["auto", "any", NAME])
def test_tools(model: Any, choice: str) -> None:
    bound = model.bind_tools([get_weather], tool_choice=choice)
    messages: list[Any] = [HumanMessage(QUESTION)]
    answer = bound.invoke(messages)
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == (NAME, ARGUMENTS)
    chunks = list(bound.stream(messages))
    (streamed,) = sum(chunks[1:], chunks[0]).tool_calls
    assert (streamed["name"], streamed["args"]) == (NAME, ARGUMENTS)
    messages += [answer, ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"])]
    assert model.bind_tools([get_weather]).invoke(messages).text == REPORT


def test_a_prompt_that_is_too_long(model: Any) -> None:
    with pytest.raises(ContextOverflowError):
        model.invoke("a" * 40_000)
