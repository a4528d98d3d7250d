"""A server in a thread of the test's process, and a client of the HTTP API that waits for its answers."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from email.message import Message
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import anthropic
import openai
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from control_plane.config import ServeConfig
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.tenants import Limits
from control_plane.tenancy.usage import Usage
from control_plane.up import running

Yielded = TypeVar("Yielded")

TIMEOUT_SECONDS = 60
JSON = {"Content-Type": "application/json"}
IDLE = {"running": 0, "waiting": 0, "kv_cache_used": 0}
"""The result of `ApiClient.engine` while no request runs."""

HEARTBEAT = b": waiting\n\n"
"""What a stream sends while it waits for a token."""

COMPLETION = "/v1/completions"
ASK: Any = {"prompt": "the cat", "max_tokens": 4, "temperature": 0}
"""A request with 2 prompt tokens, whose answer has 4."""
ASK_TOKENS = 6

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Prometheus samples by their name and labels."""


@contextmanager
def in_thread(server: AbstractAsyncContextManager[Yielded]) -> Iterator[Yielded]:
    """Run a server in a thread with its own event loop until the context ends; yields the server's value."""
    started: Future[tuple[Yielded, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with server as value:
            started.set_result((value, asyncio.get_running_loop(), stop))
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = Thread(target=run)
    thread.start()
    try:
        value, loop, stop = started.result(TIMEOUT_SECONDS)
        try:
            yield value
        finally:
            loop.call_soon_threadsafe(stop.set)
    finally:
        thread.join()


@contextmanager
def closed_port() -> Iterator[int]:
    """A port on loopback that refuses connections, and that no other process can take meanwhile."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


def eventually(seen: Callable[[], Any], wanted: Any) -> None:
    """Poll until `seen()` equals `wanted`; fail after `TIMEOUT_SECONDS`."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while (found := seen()) != wanted:
        assert time.monotonic() < deadline, f"it stays {found!r}, and is to become {wanted!r}"


@dataclass(frozen=True)
class ApiResponse:
    """A response of the HTTP API."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        """The decoded body."""
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The content of an error body, which must have OpenAI's form."""
        assert list(self.json) == ["error"], self.body
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


@dataclass(frozen=True)
class ApiClient:
    """A client of one control plane, with a tenant's key or without."""

    url: URL
    key: str | None = None

    def with_key(self, key: str | None) -> "ApiClient":
        """A client of the same control plane with another key."""
        return replace(self, key=key)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> HTTPConnection:
        """Send a request, and do not wait for its answer. `body` is bytes, or sent as JSON."""
        connection = HTTPConnection(str(self.url.host), self.url.port, timeout=TIMEOUT_SECONDS)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        authorization = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        connection.request(method, path, data, {**JSON, **authorization, **headers})
        return connection

    def answer(self, method: str, path: str, body: Any = None, **headers: str) -> ApiResponse:
        """Send a request; returns the whole response."""
        with closing(self.send(method, path, body, **headers)) as connection:
            answer = connection.getresponse()
            return ApiResponse(answer.status, answer.headers, answer.read())

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the decoded JSON of the answer."""
        answer = self.answer(method, path, body)
        return answer.status, answer.json

    def post(self, path: str, **body: Any) -> Any:
        """Send a request that must succeed; returns the JSON of the answer."""
        status, answer = self.ask("POST", path, body)
        assert status == 200, answer
        return answer

    def refusal(self, path: str, body: Any, status: int = 400) -> Any:
        """Send a request that must fail with this status; returns its error."""
        answer = self.answer("POST", path, body)
        assert answer.status == status, answer
        assert answer.headers["x-request-id"]
        error = answer.error
        assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
        return error

    def stream(self, path: str, **body: Any) -> list[Any]:
        """The events of a streamed answer, without the [DONE] that must end it."""
        with closing(self.send("POST", path, {**body, "stream": True})) as connection:
            answer = connection.getresponse()
            assert answer.status == 200
            assert answer.headers.get_content_type() == "text/event-stream"
            return read_events(answer.read())

    def status(self) -> Any:
        """The report of GET /status."""
        return self.ask("GET", "/status")[1]

    def engine(self) -> Any:
        """The engine's load, from GET /status."""
        engine = self.status()["engine"]
        return {name: engine[name] for name in IDLE}

    def invocations(self) -> int:
        """The number of invocations of all functions, from GET /status."""
        return sum(function["invocations"] for function in self.status()["functions"])

    def metrics(self) -> Samples:
        """The samples of GET /metrics."""
        answer = self.answer("GET", "/metrics")
        assert answer.status == 200
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.body.decode())
            for sample in family.samples
        }


def read_events(body: bytes) -> list[Any]:
    """The events of a stream, without heartbeats and the [DONE] that must end it."""
    *events, done, rest = body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events if event != HEARTBEAT.strip()]


@contextmanager
def serving(partition: Path, database: Path, **settings: Any) -> Iterator[ApiClient]:
    """Run the whole system for a partition: gateway, function processes and control plane."""
    settings = {"kv_cache_mb": 8, **settings}
    config = ServeConfig(port=0, threads=1, database=str(database), **settings)
    with in_thread(running(partition, config, 0, lambda line: None)) as url:
        yield ApiClient(url)


def add_tenant(database: Path, name: str, *, operator: bool = False, **limits: Any) -> str:
    """Add a tenant to the database, which a server may be using; returns its key."""
    with TenantStore.open(database) as store:
        return store.add(name, Limits(**limits), operator)


def usage_of(database: Path, name: str) -> Usage:
    """The usage booked to a tenant; zeros if there is none."""
    with TenantStore.open(database) as store:
        return next(iter(store.usage(name, None)), Usage(name, 0, 0, 0, 0, 0))


@contextmanager
def holding(api: ApiClient, sequences: int = 1, **fields: Any) -> Iterator[None]:
    """Keep a request with that many endless answers running until the context ends."""
    body = {"prompt": "the", "max_tokens": 3000, "n": sequences, "ignore_eos": True, "stream": True, **fields}
    with closing(api.send("POST", COMPLETION, body)) as connection:
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        while (line := answer.readline()) in HEARTBEAT.splitlines(keepends=True):
            pass
        assert line.startswith(b"data: {")
        try:
            yield
        finally:
            # The answer also holds the socket.
            answer.close()


def completion(api: ApiClient, **changes: Any) -> ApiResponse:
    """The answer to `ASK` with some fields changed."""
    return api.answer("POST", COMPLETION, {**ASK, **changes})


def openai_client(api: ApiClient, key: str, retries: int = 0) -> openai.OpenAI:
    """OpenAI's client for the same control plane."""
    return openai.OpenAI(
        base_url=str(api.url / "v1"), api_key=key, max_retries=retries, timeout=TIMEOUT_SECONDS
    )


def anthropic_client(api: ApiClient, key: str) -> anthropic.Anthropic:
    """Anthropic's client for the same control plane."""
    return anthropic.Anthropic(
        base_url=str(api.url), auth_token=key, api_key=None, max_retries=0, timeout=TIMEOUT_SECONDS
    )
