"""A server in a thread of the test's process, and a client of the HTTP API that waits for its answers."""

import asyncio
import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from threading import Thread
from typing import Any, TypeVar

from yarl import URL

Yielded = TypeVar("Yielded")

TIMEOUT_SECONDS = 60
JSON = {"Content-Type": "application/json"}


@contextmanager
def in_thread(server: AbstractAsyncContextManager[Yielded]) -> Iterator[Yielded]:
    """Keep a server up, in an event loop of its own, until the context ends; yields what the server does."""
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
    """A port of this machine that refuses connections, and that nobody else gets meanwhile."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


@dataclass(frozen=True)
class ApiClient:
    """Speaks to one control plane."""

    url: URL

    def send(self, method: str, path: str, body: Any = None) -> HTTPConnection:
        """Send a request, and do not wait for its answer. `body` is bytes, or sent as JSON."""
        connection = HTTPConnection(str(self.url.host), self.url.port, timeout=TIMEOUT_SECONDS)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, JSON)
        return connection

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the decoded JSON of the answer."""
        with closing(self.send(method, path, body)) as connection:
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def post(self, path: str, **body: Any) -> Any:
        """The JSON with which a good request is answered."""
        status, answer = self.ask("POST", path, body)
        assert status == 200, answer
        return answer

    def stream(self, path: str, **body: Any) -> list[Any]:
        """The events of a streamed answer, without the [DONE] that must end it."""
        with closing(self.send("POST", path, {**body, "stream": True})) as connection:
            answer = connection.getresponse()
            assert answer.status == 200
            assert answer.headers.get_content_type() == "text/event-stream"
            *events, done, rest = answer.read().split(b"\n\n")
        assert (done, rest) == (b"data: [DONE]", b"")
        return [json.loads(event.removeprefix(b"data: ")) for event in events]

    def status(self) -> Any:
        """What GET /status tells."""
        return self.ask("GET", "/status")[1]
