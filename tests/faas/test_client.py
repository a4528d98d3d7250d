"""The client bounds what a gateway may send and how long it may take, and tries changes again."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from control_plane.errors import GatewayError
from control_plane.faas import client
from control_plane.faas.client import Gateway
from control_plane.faas.types import FunctionDeployment
from control_plane.http import serving
from tests.support.gateways.echo_gateway import asynchronous

Answer = Callable[[], web.StreamResponse]
JSON = "application/json"
MEGABYTE = b"x" * 2**20


@asynccontextmanager
async def answering(
    *answers: Answer,
) -> AsyncIterator[tuple[Gateway, list[web.Request]]]:
    """A gateway that gives these answers, the last one again and again; also yields the requests."""
    requests: list[web.Request] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        given = answers[min(len(requests), len(answers) - 1)]
        requests.append(request)
        return given()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with serving(app, "127.0.0.1", 0) as url, Gateway.connect(url, None) as gateway:
        yield gateway, requests


class Endless(web.StreamResponse):
    """Sends megabytes until the client hangs up."""

    def __init__(self, status: int) -> None:
        super().__init__(status=status, headers={"Content-Type": JSON})
        self.sent = 0

    async def write_eof(self, data: bytes = b"") -> None:
        while True:
            await self.write(MEGABYTE)
            self.sent += len(MEGABYTE)


@pytest.mark.parametrize(
    "text",
    [
        *("{}", '"functions"', "5", "null", "[null]", '["a"]', "[[]]", "{", "", '[{"name": 5}]', "\udcff"),
        *('[{"name": "a", "replicas": -1}]', '[{"name": "a", "replicas": 1e300}]'),
        *('[{"name": "a", "usage": {"totalMemoryBytes": NaN}}]', '[{"name": "a", "invocationCount": "5"}]'),
        *('[{"name": "a", "usage": {"totalMemoryBytes": -1}}]', '[{"name": "a", "labels": {"a": 1}}]'),
        "[" * 100_000,
    ],
)
def test_a_list_that_lies_is_an_error(text: str) -> None:
    @asynchronous
    async def run() -> None:
        body = text.encode(errors="surrogateescape")
        async with answering(partial(web.Response, body=body, content_type=JSON)) as (gateway, _):
            with pytest.raises(GatewayError):
                await gateway.functions()

    run()


@asynchronous
async def test_large_and_repeated_entries_are_read() -> None:
    entries = [{"name": "a", "replicas": 2**63 - 1}] * 2000
    async with answering(partial(web.json_response, entries)) as (gateway, _):
        assert [status.replicas for status in await gateway.functions()] == [2**63 - 1] * 2000


@pytest.mark.parametrize(("status", "most"), [(200, client.MAX_ANSWER_BYTES), (500, 2**16)])
def test_an_answer_without_end_is_not_read_to_its_end(status: int, most: int) -> None:
    @asynchronous
    async def run() -> None:
        endless = Endless(status)
        async with answering(lambda: endless) as (gateway, _):
            with pytest.raises(GatewayError, match=r"more than|answered 500"):
                await gateway.functions()
        # What is in the buffers of sockets was sent, too.
        assert endless.sent < most + 2**24

    run()


@asynchronous
async def test_an_error_is_quoted_on_one_short_line() -> None:
    text = "bad\n\x1b[31mtext" + "x" * 5000
    async with answering(lambda: web.Response(status=400, text=text)) as (gateway, _):
        with pytest.raises(GatewayError) as caught:
            await gateway.functions()
    assert "answered 400: bad [31mtext" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@asynchronous
async def test_a_redirect_is_not_followed() -> None:
    elsewhere = {"Location": "/elsewhere"}
    async with answering(lambda: web.Response(status=307, headers=elsewhere)) as (gateway, requests):
        with pytest.raises(GatewayError, match="307"):
            await gateway.functions()
        assert [request.path for request in requests] == ["/system/functions"]


@pytest.mark.parametrize(
    ("limit", "call"),
    [
        ("LIST_SECONDS", lambda gateway: gateway.functions()),
        ("LIST_SECONDS", lambda gateway: gateway.max_functions()),
        ("SCALE_SECONDS", lambda gateway: gateway.scale("a", 0)),
        ("RESIDENCY_SECONDS", lambda gateway: gateway.release_residency("a")),
        ("LIST_SECONDS", lambda gateway: gateway.keep_awake("a", b"", 0.05)),
        ("CHANGE_SECONDS", lambda gateway: gateway.remove("a")),
        ("CHANGE_SECONDS", lambda gateway: gateway.deploy(FunctionDeployment("a", "i"))),
    ],
)
def test_every_call_has_a_deadline(
    limit: str, call: Callable[[Gateway], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, limit, 0.05)
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.0)

    async def run() -> None:
        async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await closed.wait()
            writer.close()

        closed = asyncio.Event()
        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started = time.monotonic()
        async with Gateway.connect(URL(url), None) as gateway:
            with pytest.raises(GatewayError, match=r"did not answer within 0\.05 s"):
                await call(gateway)
        assert time.monotonic() - started < 5
        closed.set()
        server.close()

    asyncio.run(run())


@pytest.mark.parametrize("status", [500, 502, 503])
def test_changes_that_fail_are_tried_again(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.0)

    @asynchronous
    async def run() -> None:
        failures = [lambda: web.Response(status=status)] * (client.ATTEMPTS - 1)
        async with answering(*failures, lambda: web.Response(status=202)) as (gateway, requests):
            await gateway.remove("a")
            assert [request.method for request in requests] == ["DELETE"] * client.ATTEMPTS
            requests.clear()
            await gateway.deploy(FunctionDeployment("a", "i"))
            assert [request.method for request in requests] == ["PUT"] * client.ATTEMPTS
        async with answering(lambda: web.Response(status=status)) as (gateway, requests):
            with pytest.raises(GatewayError, match=str(status)):
                await gateway.remove("a")
            assert len(requests) == client.ATTEMPTS

    run()


@asynchronous
async def test_a_change_that_is_refused_is_not_tried_again() -> None:
    async with answering(lambda: web.Response(status=400, text="no such image")) as (gateway, requests):
        with pytest.raises(GatewayError, match="no such image"):
            await gateway.deploy(FunctionDeployment("a", "i"))
        assert len(requests) == 1
