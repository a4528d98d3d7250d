"""Clients that go away, at any moment: nothing of them is left, and the others do not notice."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.api_server import (
    COMPLETION,
    IDLE,
    ApiClient,
    add_tenant,
    completion,
    eventually,
    holding,
    serving,
    usage_of,
)

pytest_plugins = "tests.chat_fixtures"

MAX_SEQUENCES = 2
ENDLESS: Any = {"prompt": "the", "max_tokens": 3000, "ignore_eos": True}
LONG_PROMPT: Any = {"prompt": [5] * 3000, "max_tokens": 1}
"""Of so many steps that there is time to go away."""
MIN_STEPS = 3000 // 8
MIN_STEP_INVOCATIONS = 3
"""At least one of each layer."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("database") / "faasmoe.db"


@pytest.fixture(scope="module")
def api(chat_partition: Path, database: Path) -> Iterator[ApiClient]:
    """It computes few rows a step, and holds few sequences; the tenant may have eight requests at once."""
    key = add_tenant(database, "tenant", max_concurrency=8)
    with serving(chat_partition, database, max_sequences=MAX_SEQUENCES, max_batch_tokens=8) as server:
        yield server.with_key(key)


@contextmanager
def nothing_is_left(api: ApiClient) -> Iterator[None]:
    """What the server holds is afterwards what it was before."""
    assert completion(api).status == 200
    eventually(api.engine, IDLE)
    before = open_counts(api)
    yield
    eventually(api.engine, IDLE)
    eventually(lambda: open_counts(api), before)
    # As many requests as the tenant may have at once: none of those that are gone counts.
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(holding(api) if _ < MAX_SEQUENCES else sent(api, ENDLESS))
        eventually(lambda: sum(api.engine()[name] for name in ("running", "waiting")), 8)
        assert completion(api).status == 429
    eventually(api.engine, IDLE)


@contextmanager
def sent(api: ApiClient, body: Any) -> Iterator[HTTPConnection]:
    """A request that nobody waits for any more at the end of the context."""
    with closing(api.send("POST", COMPLETION, body)) as connection:
        yield connection


def open_counts(api: ApiClient) -> Any:
    return api.status()["open"]


def head(api: ApiClient, length: int) -> bytes:
    lines = (
        f"POST {COMPLETION} HTTP/1.1",
        f"Host: {api.url.host}",
        f"Authorization: Bearer {api.key}",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    )
    return "\r\n".join((*lines, "", "")).encode()


@pytest.mark.parametrize("stream", [False, True])
def test_while_it_waits_for_its_turn(api: ApiClient, stream: bool) -> None:
    with nothing_is_left(api):
        with holding(api), holding(api), sent(api, {**ENDLESS, "stream": stream}):
            eventually(lambda: api.engine()["waiting"], 1)
            waiting = api.status()["engine"]["waiting"]
        assert waiting == 1


@pytest.mark.parametrize("stream", [False, True])
def test_while_its_prompt_is_computed(api: ApiClient, stream: bool) -> None:
    with nothing_is_left(api):
        before = api.invocations()
        with sent(api, {**LONG_PROMPT, "stream": stream}):
            eventually(lambda: api.invocations() > before + 3 * MIN_STEP_INVOCATIONS, True)
            assert api.engine()["running"] == 1
        eventually(api.engine, IDLE)
        # It did not come to its end.
        assert api.invocations() - before < MIN_STEPS * MIN_STEP_INVOCATIONS


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choices", [1, 3])
def test_while_its_answer_is_generated(api: ApiClient, stream: bool, choices: int) -> None:
    with nothing_is_left(api):
        before = api.invocations()
        with sent(api, {**ENDLESS, "stream": stream, "n": choices}):
            eventually(lambda: api.invocations() > before + 10 * MIN_STEP_INVOCATIONS, True)
        eventually(api.engine, IDLE)
        assert api.invocations() - before < 3000 * MIN_STEP_INVOCATIONS


def test_a_stream_that_has_begun(api: ApiClient) -> None:
    with nothing_is_left(api):
        for _ in range(5):
            with holding(api):
                pass


def test_a_client_that_does_not_read(api: ApiClient) -> None:
    """Its answer fills what the system holds for it; then the server waits, until it has gone."""
    with nothing_is_left(api):
        body = b'{"prompt": "the", "max_tokens": 3000, "ignore_eos": true, "stream": true, "n": 2, "logprobs": 20}'
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((str(api.url.host), api.url.port))
            client.sendall(head(api, len(body)) + body)
            eventually(lambda: api.engine()["running"], 2)
            assert completion(api).status == 200


@pytest.mark.parametrize("part", [b"", b'{"prompt": "the', b'{"prompt": "the"'])
def test_half_a_body(api: ApiClient, part: bytes) -> None:
    booked = usage_of
    with nothing_is_left(api):
        idle = open_counts(api)["connections"]
        with socket.create_connection((str(api.url.host), int(api.url.port or 0))) as client:
            client.sendall(head(api, 100) + part)
            eventually(lambda: open_counts(api)["connections"], idle + 1)
            assert api.engine() == IDLE
    assert booked


@pytest.mark.parametrize("part", [b"", b"POST", b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"])
def test_half_a_head(api: ApiClient, part: bytes) -> None:
    with nothing_is_left(api):
        idle = open_counts(api)["connections"]
        with socket.create_connection((str(api.url.host), int(api.url.port or 0))) as client:
            client.sendall(part)
            eventually(lambda: open_counts(api)["connections"], idle + 1)


def test_others_go_on(api: ApiClient, tokenizer: Any, expected: Callable[[list[int], int], str]) -> None:
    asked = {"prompt": "the cat", "max_tokens": 150, "temperature": 0, "ignore_eos": True}
    text = expected(tokenizer("the cat")["input_ids"], 150)
    with nothing_is_left(api), ThreadPoolExecutor(1) as thread:
        answer = thread.submit(api.stream, COMPLETION, **asked)
        gone = 0
        while not answer.done():
            with sent(api, {**ENDLESS, "stream": gone % 2 == 0}):
                eventually(lambda: api.engine()["running"] == 2 or answer.done(), True)
            gone += 1
        events = answer.result()
        assert "".join(event["choices"][0]["text"] for event in events) == text
        assert gone > 3


def test_all_of_them_are_booked(api: ApiClient, database: Path) -> None:
    before = usage_of(database, "tenant").requests
    for _ in range(3):
        with holding(api):
            pass
    eventually(lambda: usage_of(database, "tenant").requests, before + 3)
