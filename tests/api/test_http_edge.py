"""Malformed HTTP: the server keeps running, answers in JSON, and neither returns nor logs a secret."""

import asyncio
import gzip
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from control_plane import http
from control_plane.api.bodies.reading import read_body
from control_plane.api.middleware import TENANT, request_middleware
from control_plane.api.openai.wire import CompletionBody
from control_plane.http import serving
from control_plane.tenancy.tenants import Limits, Tenant
from tests.support.api.api_server import TIMEOUT_SECONDS, ApiClient, in_thread

MAX_BODY_BYTES = 1000
SECRET = "fm-a-key-that-nobody-may-see"
GO = web.AppKey("go", asyncio.Event)

CROWDED = """
import asyncio, resource
from aiohttp import web
from control_plane.http import serving

resource.setrlimit(resource.RLIMIT_NOFILE, (200, 900))

async def hello(request):
    return web.Response(text="hello")

async def serve():
    app = web.Application()
    app.router.add_get("/", hello)
    async with serving(app, "127.0.0.1", 0) as url:
        print(url.port, flush=True)
        await asyncio.Event().wait()

asyncio.run(serve())
"""


def application() -> web.Application:
    """An application that reads bodies, and has a stream that continues after a request to `go`."""

    async def read(request: web.Request) -> web.Response:
        return web.json_response(len(await request.read()))

    async def parse(request: web.Request) -> web.Response:
        request[TENANT] = Tenant("acme", Limits())
        read_body(await request.json(), CompletionBody)
        return web.json_response({})

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        await request.app[GO].wait()
        await response.write(b"ended")
        return response

    async def go(request: web.Request) -> web.Response:
        request.app[GO].set()
        return web.json_response({})

    app = web.Application(middlewares=[request_middleware], client_max_size=MAX_BODY_BYTES)
    app[GO] = asyncio.Event()
    app.add_routes(
        [web.post("/", read), web.post("/parse", parse), web.get("/stream", stream), web.post("/go", go)]
    )
    return app


@pytest.fixture
def url() -> Iterator[URL]:
    with in_thread(serving(application(), "127.0.0.1", 0)) as url:
        yield url


@pytest.fixture
def client(url: URL) -> ApiClient:
    return ApiClient(url)


def connected(url: URL, data: bytes) -> socket.socket:
    """Open a connection, and send data on it."""
    assert url.host is not None
    assert url.port is not None
    connection = socket.create_connection((url.host, url.port), TIMEOUT_SECONDS)
    connection.sendall(data)
    return connection


def exchanged(url: URL, data: bytes) -> tuple[int, Any]:
    """Send raw bytes on a new connection; returns the status and the decoded body of the answer."""
    with closing(connected(url, data)) as connection, connection.makefile("rb") as answer:
        status = int(answer.readline().split()[1])
        length = 0
        while (line := answer.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, json.loads(answer.read(length))


def head(*lines: bytes, line: bytes = b"POST / HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"Host: edge", *lines, b"", b""])


MALFORMED = {
    "carriage return": head(b"Authorization: Bearer " + SECRET.encode() + b"\r"),
    "no colon": head(b"Authorization Bearer " + SECRET.encode()),
    "control character": head(b"Authorization: Bearer " + SECRET.encode() + b"\x00"),
    "long header": head(b"Authorization: Bearer " + SECRET.encode() * 1000),
    "many headers": head(*[b"X-%d: " % number + SECRET.encode() for number in range(500)]),
    "no version": head(line=b"POST /?key=" + SECRET.encode() + b" HTTP/x"),
    "no method": head(line=b"PO,ST /?key=" + SECRET.encode() + b" HTTP/1.1"),
    "long line": head(line=b"GET /" + SECRET.encode() * 1000 + b" HTTP/1.1"),
    "no address": head(line=b"GET http://[" + SECRET.encode() + b" HTTP/1.1"),
    "two lengths": head(b"Content-Length: 5", b"Content-Length: 6", b"X: " + SECRET.encode()),
    "negative length": head(b"Content-Length: -5", b"X: " + SECRET.encode()),
    "length and chunks": head(b"Content-Length: 5", b"Transfer-Encoding: chunked", b"X: " + SECRET.encode()),
    "TLS": b"\x16\x03\x01\x02\x00\x01" + SECRET.encode() + b"\r\n\r\n",
    "not UTF-8": head(line=b"GET /\xff\xfe" + SECRET.encode() + b" HTTP/1.2.3"),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_http(url: URL, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    status, body = exchanged(url, data)
    assert (status, set(body["error"])) == (400, {"message", "type", "param", "code"})
    assert body["error"]["type"] == "invalid_request_error"
    assert SECRET not in json.dumps(body)
    assert SECRET not in caplog.text
    records = [record for record in caplog.records if record.name != "asyncio"]
    assert len(records) <= 1
    assert all(record.levelno < logging.WARNING and record.exc_info is None for record in records)
    assert ApiClient(url).ask("POST", "/", b"abc") == (200, 3)


@pytest.mark.parametrize("end", [b"", b"\x80"])
def test_an_unsupported_expectation(url: URL, end: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    status, body = exchanged(url, head(b"Expect: " + SECRET.encode() + end, b"Content-Length: 5"))
    assert (status, body["error"]["type"]) == (417, "invalid_request_error")
    assert SECRET not in json.dumps(body) + caplog.text


@pytest.mark.parametrize("path", ["/", "/nowhere"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_body_with_a_wrong_content_encoding(
    client: ApiClient, encoding: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.answer("POST", path, SECRET.encode(), **{"Content-Encoding": encoding})
    # A body that the handler does not read is decoded only if its beginning arrives with the head.
    assert answer.status in ((400,) if path == "/" else (400, 404))
    assert SECRET not in answer.error["message"]
    assert client.ask("POST", "/", b"abc") == (200, 3)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_malformed_chunks(url: URL, caplog: pytest.LogCaptureFixture) -> None:
    status, body = exchanged(url, head(b"Transfer-Encoding: chunked") + b"zz\r\n" + SECRET.encode())
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert SECRET not in json.dumps(body) + caplog.text


def test_a_good_encoding_is_read(client: ApiClient) -> None:
    body = gzip.compress(b"a" * 900)
    assert client.ask("POST", "/", body) == (200, len(body))
    assert json.loads(client.answer("POST", "/", body, **{"Content-Encoding": "gzip"}).body) == 900


def test_a_content_length_that_is_too_large(url: URL) -> None:
    """The server answers without waiting for the body."""
    for length in (MAX_BODY_BYTES + 1, 99999999999999):
        status, body = exchanged(url, head(b"Content-Length: %d" % length))
        assert (status, body["error"]["type"]) == (413, "invalid_request_error")
    assert exchanged(url, head(b"Content-Length: 1000") + b"a" * 1000) == (200, 1000)


def test_refused_text_is_not_logged(client: ApiClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    status, answer = client.ask("POST", "/parse", {"structured_outputs": {SECRET * 20: 1}})
    assert (status, len(answer["error"]["param"])) == (400, 80)
    status, _ = client.ask("POST", "/parse", {"prompt": 5, "suffix": SECRET})
    assert status == 400
    (first, second) = [record for record in caplog.records if record.msg == "not served"]
    assert [vars(record)["status"] for record in (first, second)] == [400, 400]
    assert [vars(record)["param"] for record in (first, second)] == [
        f"structured_outputs.{SECRET * 20}"[:80],
        "suffix",
    ]
    assert [vars(record)["code"] for record in (first, second)] == [None, None]
    assert [vars(record)["tenant"] for record in (first, second)] == ["acme", "acme"]
    assert all(vars(record)["request_id"] for record in (first, second))
    assert SECRET not in json.dumps([vars(second), caplog.text], default=str)


def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections are closed after a while; those with an answer in progress are not."""
    monkeypatch.setattr(http, "KEEP_ALIVE_SECONDS", 0.2)
    with in_thread(serving(application(), "127.0.0.1", 0)) as url, ExitStack() as stack:
        stream = stack.enter_context(closing(connected(url, head(line=b"GET /stream HTTP/1.0"))))
        received = b""
        while not received.endswith(b"begun"):
            received += stream.recv(4096)
        for data in (b"", b"GET / HTTP/1.1\r\nX"):
            with closing(connected(url, data)) as silent:
                assert silent.recv(1) == b""
        assert ApiClient(url).ask("POST", "/go") == (200, {})
        assert stream.recv(4096) == b"ended"


def test_a_connection_is_kept_after_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the setting says, which is longer than proxies and clients keep theirs."""
    assert http.KEEP_ALIVE_SECONDS > 120  # Caddy's; nginx has 60 s, Go 90 s, curl 118 s.
    monkeypatch.setattr(http, "KEEP_ALIVE_SECONDS", 0.5)
    with (
        in_thread(serving(application(), "127.0.0.1", 0)) as url,
        closing(connected(url, head(b"Content-Length: 0"))) as connection,
    ):
        answered = time.monotonic()
        answer = b""
        while data := connection.recv(4096):
            answer += data
        assert answer.endswith(b"\r\n\r\n0")
        assert time.monotonic() - answered >= 0.4


def test_more_connections_than_the_limit_of_files_allows() -> None:
    with (
        subprocess.Popen(
            [sys.executable, "-c", CROWDED], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as server,
        ExitStack() as stack,
    ):
        try:
            assert server.stdout is not None
            url = URL.build(scheme="http", host="127.0.0.1", port=int(server.stdout.readline()))
            first = stack.enter_context(closing(connected(url, b"GET / HTTP/1.1\r\nX")))
            for _ in range(920):
                stack.enter_context(closing(connected(url, b"GET / HTTP/1.1\r\nX")))
            answer = ApiClient(url).answer("GET", "/")
            assert (answer.status, answer.body) == (200, b"hello")
            # The oldest connection is closed, whether or not its data was read.
            with suppress(ConnectionResetError):
                assert first.recv(1) == b""
        finally:
            server.kill()
        assert server.stderr is not None
        assert server.stderr.read() == b""
