"""Anthropic's client asks a whole system."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.support.api.api_server import ApiClient, add_tenant, anthropic_client
from tests.support.models.tiny_chat_model import NAME

pytestmark = pytest.mark.slow

PATH = "/v1/messages"
USER: Any = {"role": "user", "content": [{"type": "text", "text": "who sat?"}]}
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "who sat?"}]
ASKED: Any = {"model": NAME, "system": "be brief", "messages": [USER], "max_tokens": 40}


@pytest.fixture(scope="module")
def client(server: ApiClient, database: Path) -> Iterator[anthropic.Anthropic]:
    with anthropic_client(server, add_tenant(database, "acme")) as client:
        yield client


@pytest.fixture(scope="module")
def prompt(tokenizer: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False))


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_an_answer(client: anthropic.Anthropic, prompt: list[int], expected: Any) -> None:
    found = client.messages.create(**ASKED, extra_body={"temperature": 0})
    assert text_of(found) == expected(prompt, 40)
    assert (found.role, found.stop_reason, found.stop_sequence) == ("assistant", "max_tokens", None)
    assert (all_input(found.usage), found.usage.output_tokens) == (len(prompt), 40)


def all_input(usage: anthropic.types.Usage) -> int:
    """The tokens of a prompt, those among them that were there from earlier requests."""
    return usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_the_client_s_own_stream(client: anthropic.Anthropic, prompt: list[int], expected: Any) -> None:
    with client.messages.stream(**ASKED, extra_body={"temperature": 0}) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == text_of(final) == expected(prompt, 40)
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 40)
    assert all_input(final.usage) == len(prompt)


def test_the_stop_sequence_that_ended_it_is_named(
    client: anthropic.Anthropic, prompt: list[int], expected: Any
) -> None:
    text = expected(prompt, 40)
    stop = text[20:23]
    asked: Any = {**ASKED, "stop_sequences": ["never comes", stop], "extra_body": {"temperature": 0}}
    whole = client.messages.create(**asked)
    assert text_of(whole) == text[: text.index(stop)]
    assert (whole.stop_reason, whole.stop_sequence) == ("stop_sequence", stop)
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert (text_of(final), final.stop_sequence) == (text_of(whole), stop)


def test_the_end_of_a_turn(client: anthropic.Anthropic) -> None:
    asked: Any = {**ASKED, "max_tokens": 3000, "extra_body": {"temperature": 2}}
    assert client.messages.create(**asked).stop_reason == "end_turn"


def test_counting_tokens(client: anthropic.Anthropic, prompt: list[int]) -> None:
    counted = client.messages.count_tokens(model=NAME, system="be brief", messages=[USER])
    assert counted.input_tokens == len(prompt)


def test_errors_have_anthropic_s_form(server: ApiClient, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="'image' is not supported"):
        client.messages.create(model=NAME, max_tokens=5, messages=[{"role": "user", "content": [IMAGE]}])
    with pytest.raises(anthropic.NotFoundError, match="there is no model 'claude-unknown'"):
        client.messages.create(**{**ASKED, "model": "claude-unknown"})
    with anthropic_client(server, "wrong") as stranger:
        with pytest.raises(anthropic.AuthenticationError) as raised:
            stranger.messages.create(**ASKED)
        assert raised.value.type == "authentication_error"
        assert raised.value.response.headers["x-should-retry"] == "false"
        with pytest.raises(anthropic.AuthenticationError):
            stranger.messages.count_tokens(model=NAME, messages=[USER])


def test_a_chat_that_is_too_long_is_refused_in_anthropic_s_words(server: ApiClient, database: Path) -> None:
    """Claude Code looks for these words, to say that the chat must be compacted."""
    with anthropic_client(server, add_tenant(database, "short", max_context=20)) as client:
        asked: Any = {**ASKED, "messages": [{"role": "user", "content": "mat " * 30}]}
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: [0-9]+ tokens > 20 max"):
            client.messages.create(**asked)
        asked["messages"][0]["content"] = "mat " * 100_000
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: at least [0-9]+ tokens > "):
            client.messages.create(**asked)


IMAGE: Any = {"type": "image", "source": {"type": "url", "url": "http://localhost/cat.png"}}


def test_a_tenant_that_is_over_its_limit(server: ApiClient, database: Path) -> None:
    with anthropic_client(server, add_tenant(database, "slow", rpm=1)) as client:
        client.messages.create(**{**ASKED, "max_tokens": 1})
        with pytest.raises(anthropic.RateLimitError) as raised:
            client.messages.create(**{**ASKED, "max_tokens": 1})
    assert raised.value.type == "rate_limit_error"
    assert int(raised.value.response.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("POST", f"{PATH}/batches", 404, "not_found_error"),
        ("GET", PATH, 405, "invalid_request_error"),
        ("POST", PATH, 413, "request_too_large"),
    ],
)
def test_errors_of_http(server: ApiClient, method: str, path: str, status: int, kind: str) -> None:
    body = b"a" * (5 << 20) if status == 413 else b"{}"
    answer = server.answer(method, path, body)
    assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (status, "error", kind)
    assert answer.json["request_id"] == answer.headers["x-request-id"]
