"""Errors in OpenAI's client: its exceptions, headers and retries."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.api.api_server import ApiClient, add_tenant, eventually, openai_client, usage_of
from tests.support.models.tiny_chat_model import NAME

MESSAGES: Any = [{"role": "user", "content": "who sat?"}]
HOT: Any = {"model": NAME, "prompt": "the cat", "max_tokens": 24, "temperature": 1.5, "seed": 7}
ENDLESS: Any = {
    "model": NAME,
    "prompt": "the",
    "max_tokens": 3000,
    "stream": True,
    "extra_body": {"ignore_eos": True},
}


@pytest.fixture(scope="module")
def client(server: ApiClient, database: Path) -> Iterator[openai.OpenAI]:
    with openai_client(server, add_tenant(database, "acme")) as client:
        yield client


def test_exceptions(server: ApiClient, client: openai.OpenAI) -> None:
    with (
        openai_client(server, "sk-none-of-ours") as stranger,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        stranger.completions.create(model=NAME, prompt="a")
    assert (refused.value.status_code, refused.value.code) == (401, "invalid_api_key")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-4", prompt="a")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model=NAME, prompt="a", temperature=3)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    assert bad.value.request_id
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=NAME, prompt=[5] * 500_000)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=NAME, messages=MESSAGES, tools=[{}], stream=True)  # type: ignore[list-item]


def test_headers(server: ApiClient, database: Path) -> None:
    # Limits so low that the used amounts are not refilled before the answer.
    key = add_tenant(database, "counted", rpm=6, tpm=100)
    with openai_client(server, key) as client:
        raw = client.completions.with_raw_response.create(**HOT)
        with client.completions.with_streaming_response.create(**HOT, stream=True) as stream:
            headers = stream.headers
            stream.read()
    assert raw.parse()._request_id == raw.headers["x-request-id"] != headers["x-request-id"]
    for kind, limit in (("requests", 6), ("tokens", 100)):
        left = [int(sent[f"x-ratelimit-remaining-{kind}"]) for sent in (raw.headers, headers)]
        assert limit > left[0] > left[1] > 0
        assert raw.headers[f"x-ratelimit-limit-{kind}"] == str(limit)
        assert raw.headers[f"x-ratelimit-reset-{kind}"].endswith("s")


def test_the_client_retries_if_the_server_asks_for_it(server: ApiClient, database: Path) -> None:
    key = add_tenant(database, "busy", max_concurrency=1)
    operator = server.with_key(add_tenant(database, "watcher", operator=True))
    refusals = ("faasmoe:tenant_refusals_total", frozenset(
        {"model_name": NAME, "tenant": "busy", "reason": "rate_limit_exceeded"}.items()
    ))  # fmt: skip
    with openai_client(server, key, retries=2) as client, ThreadPoolExecutor(1) as thread:
        stream = client.completions.create(**ENDLESS)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as limited:
            client.with_options(max_retries=0).completions.create(**HOT)
        assert limited.value.code == "rate_limit_exceeded"
        assert limited.value.response.headers["retry-after"] == "1"
        trying = thread.submit(lambda: client.completions.with_raw_response.create(**HOT))
        eventually(lambda: operator.metrics()[refusals], 2)
        stream.close()
        assert trying.result(60).retries_taken >= 1


def test_the_client_does_not_retry_a_hopeless_request(server: ApiClient, database: Path) -> None:
    key = add_tenant(database, "small", tpm=10)
    operator = server.with_key(add_tenant(database, "looker", operator=True))
    with openai_client(server, key, retries=2) as client, pytest.raises(openai.RateLimitError) as limited:
        client.completions.create(**HOT)
    assert limited.value.response.headers["x-should-retry"] == "false"
    by_tenant = [
        value for (name, labels), value in operator.metrics().items()
        if name == "faasmoe:tenant_refusals_total" and ("tenant", "small") in labels
    ]  # fmt: skip
    assert by_tenant == [1]
    assert usage_of(database, "small").requests == 0
