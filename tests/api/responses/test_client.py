"""OpenAI's client asks a whole system by the Responses API."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.api.api_server import ApiClient, add_tenant, openai_client
from tests.support.models.tiny_chat_model import NAME

pytestmark = pytest.mark.slow

INPUT: Any = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "who sat?"}]
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "who sat?"}]
ASKED: Any = {"model": NAME, "input": INPUT, "max_output_tokens": 40, "temperature": 0}


@pytest.fixture(scope="module")
def client(server: ApiClient, database: Path) -> Iterator[openai.OpenAI]:
    with openai_client(server, add_tenant(database, "acme")) as client:
        yield client


@pytest.fixture(scope="module")
def prompt(tokenizer: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False))


def test_an_answer(client: openai.OpenAI, prompt: list[int], expected: Any) -> None:
    found = client.responses.create(**ASKED)
    assert found.output_text == expected(prompt, 40)
    assert (found.status, found.error) == ("incomplete", None)
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens) == (len(prompt), 40)


def test_instructions_and_a_string(client: openai.OpenAI, prompt: list[int], expected: Any) -> None:
    found = client.responses.create(
        model=NAME, instructions="be brief", input="who sat?", max_output_tokens=40, temperature=0
    )
    assert found.output_text == expected(prompt, 40)


def test_the_client_s_own_stream(client: openai.OpenAI, prompt: list[int], expected: Any) -> None:
    with client.responses.stream(**ASKED) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == expected(prompt, 40)
    assert events[0].type == "response.created"
    last = events[-1]
    assert last.type == "response.incomplete"
    assert (last.response.output_text, last.response.id) == (text, events[0].response.id)
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == 40


def test_an_answer_that_is_complete(client: openai.OpenAI) -> None:
    found = client.responses.create(model=NAME, input="who sat?", temperature=2, max_output_tokens=3000)
    assert (found.status, found.error, found.incomplete_details) == ("completed", None, None)


def test_refusals_have_openai_s_form(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="send the whole input") as raised:
        client.responses.create(**ASKED, previous_response_id="resp_1")
    assert raised.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        client.responses.create(model="gpt-5", input="a")


def test_embeddings_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=f"'{NAME}' generates text, and makes no embeddings"):
        client.embeddings.create(model=NAME, input="a")
