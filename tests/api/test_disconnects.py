"""Clients that disconnect at any moment: the server frees all that they held, and serves the others."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.api.api_server import (
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

pytestmark = pytest.mark.slow

MAX_SEQUENCES = 2
MAX_CONCURRENCY = 8
ENDLESS: Any = {"prompt": "the", "max_tokens": 3000, "ignore_eos": True}
LONG_PROMPT: Any = {"prompt": [5] * 3000, "max_tokens": 1}
"""A prompt that is computed in so many steps that there is time to disconnect."""
MIN_STEPS = 3000 // 8
MIN_STEP_INVOCATIONS = 3
"""The least invocations of a step: one per layer."""
POOLED = "pooled sockets"
MAX_POOL_GROWTH = 16
"""For each of four functions: a direct connection, both ends of one to the gateway, and one from there."""
HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer KEY\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("database") / "faasmoe.db"


@pytest.fixture(scope="module")
def api(chat_partition: Path, database: Path) -> Iterator[ApiClient]:
    """A server with few rows per step and few sequences, for a tenant with a limit of concurrent requests."""
    key = add_tenant(database, "tenant", max_concurrency=MAX_CONCURRENCY)
    with serving(chat_partition, database, max_sequences=MAX_SEQUENCES, max_batch_tokens=8) as server:
        yield server.with_key(key)


@contextmanager
def nothing_is_left(api: ApiClient) -> Iterator[Mapping[str, int]]:
    """Yields the numbers of open things, and checks that the server holds no more of them afterwards."""
    assert completion(api).status == 200
    eventually(api.engine, IDLE)
    before = settled_counts(api)
    yield before
    eventually(api.engine, IDLE)
    eventually(lambda: grown(before, open_counts(api)), [])
    # The tenant may have as many concurrent requests as before: cancelled ones do not count.
    with ExitStack() as stack:
        for _ in range(MAX_CONCURRENCY):
            stack.enter_context(sent(api, ENDLESS))
        eventually(lambda: sum(api.engine()[name] for name in ("running", "waiting")), MAX_CONCURRENCY)
        assert completion(api).status == 429
    eventually(api.engine, IDLE)


def open_counts(api: ApiClient) -> Mapping[str, int]:
    """The numbers of open things, with the sockets to gateway and functions apart: `POOLED`.

    Their pools may grow when a busy machine makes calls slow. The gateway is a part of this process, too.
    """
    # A socket that its peer has reset is no connection, but it stays in its pool until the next call. Those
    # of the question for the status close at any time after it, so the sockets are counted before.
    sockets = num_sockets()
    connections = psutil.Process().net_connections("tcp")
    listening = {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}
    others = [
        each.laddr.port
        for each in connections
        if each.raddr and api.url.port not in (each.laddr.port, each.raddr.port)
    ]
    counts: dict[str, int] = api.status()["open"]
    counts["connections"] -= len(others)
    # The gateway has a task for each of its connections.
    counts["tasks"] -= sum(port in listening for port in others)
    counts["file_descriptors"] -= sockets
    return counts | {POOLED: sockets - counts["connections"]}


def num_sockets() -> int:
    number = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            number += str(descriptor.readlink()).startswith("socket:")
    return number


def grown(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """The names of the counts that are higher than before; `POOLED` may be, by `MAX_POOL_GROWTH`."""
    allowed = {**before, POOLED: before[POOLED] + MAX_POOL_GROWTH}
    return [name for name, number in after.items() if number > allowed[name]]


def settled_counts(api: ApiClient) -> Mapping[str, int]:
    """The numbers of open things once they are stable for 0.4 s.

    Closed connections disappear one by one, and a loop that waits with a timeout has a task less while it
    works.
    """
    readings = [open_counts(api)]
    while len(readings) < 5 or readings[-5:] != readings[-1:] * 5:
        time.sleep(0.1)
        readings.append(open_counts(api))
    return readings[-1]


@contextmanager
def sent(api: ApiClient, body: Any) -> Iterator[HTTPConnection]:
    """Send a request, and close its connection at the end of the context."""
    with closing(api.send("POST", COMPLETION, body)) as connection:
        yield connection


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_while_the_request_waits(api: ApiClient, stream: bool) -> None:
    with nothing_is_left(api):
        with holding(api), holding(api), sent(api, {**ENDLESS, "stream": stream}):
            eventually(lambda: api.engine()["waiting"], 1)
            waiting = api.status()["engine"]["waiting"]
        assert waiting == 1


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_while_the_prompt_is_computed(api: ApiClient, stream: bool) -> None:
    with nothing_is_left(api):
        before = api.invocations()
        with sent(api, {**LONG_PROMPT, "stream": stream}):
            eventually(lambda: api.invocations() > before + 3 * MIN_STEP_INVOCATIONS, True)
            assert api.engine()["running"] == 1
        eventually(api.engine, IDLE)
        # The prompt was not computed to its end.
        assert api.invocations() - before < MIN_STEPS * MIN_STEP_INVOCATIONS


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choices", [1, 3])
def test_disconnect_while_the_answer_is_generated(api: ApiClient, stream: bool, choices: int) -> None:
    with nothing_is_left(api):
        before = api.invocations()
        with sent(api, {**ENDLESS, "stream": stream, "n": choices}):
            eventually(lambda: api.invocations() > before + 10 * MIN_STEP_INVOCATIONS, True)
        eventually(api.engine, IDLE)
        assert api.invocations() - before < 3000 * MIN_STEP_INVOCATIONS


def test_disconnect_after_the_stream_has_begun(api: ApiClient) -> None:
    with nothing_is_left(api):
        for _ in range(5):
            with holding(api):
                pass


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"POST",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n",
        HEAD % 100,
        HEAD % 100 + b'{"prompt": "the", "max_tokens"',
    ],
)
def test_disconnect_within_a_request(api: ApiClient, part: bytes) -> None:
    address = (str(api.url.host), int(api.url.port or 0))
    with nothing_is_left(api) as before, socket.create_connection(address) as client:
        client.sendall(part.replace(b"KEY", str(api.key).encode()))
        # Both ends of the connection are in this process.
        eventually(lambda: open_counts(api)["connections"] >= before["connections"] + 2, True)


def test_other_clients_get_their_whole_answers(
    api: ApiClient, tokenizer: Any, expected: Callable[[list[int], int], str]
) -> None:
    # Long enough for some clients to come and go meanwhile.
    asked = {"prompt": "the cat", "max_tokens": 400, "temperature": 0, "ignore_eos": True}
    text = expected(tokenizer("the cat")["input_ids"], 400)
    with nothing_is_left(api), ThreadPoolExecutor(1) as thread:
        answer = thread.submit(api.stream, COMPLETION, **asked)
        gone = 0
        while not answer.done():
            with sent(api, {**ENDLESS, "stream": gone % 2 == 0}):
                eventually(lambda: api.engine()["running"] == 2 or answer.done(), True)
            gone += 1
        events = answer.result()
        assert "".join(event["choices"][0]["text"] for event in events) == text
        assert gone > 2


def test_disconnected_requests_are_booked(api: ApiClient, database: Path) -> None:
    before = usage_of(database, "tenant").requests
    for _ in range(3):
        with holding(api):
            pass
    eventually(lambda: usage_of(database, "tenant").requests, before + 3)
