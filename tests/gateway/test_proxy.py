"""The gateway forwards bytes and headers."""

import asyncio
import gzip
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from control_plane.gateway.provider.process import Timeouts
from tests.support.gateways.echo_client import deployment
from tests.support.gateways.echo_gateway import asynchronous, echo_gateway


@asynchronous
async def test_a_call_is_forwarded_without_hop_by_hop_headers(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        url = URL("/function/echo.openfaas-fn/process?a=1%2F2&b=x+y", encoded=True)
        hop = {
            "Connection": "X-Mine",
            "X-Mine": "1",
            "TE": "trailers",
            "X-Kept": "2",
            "Authorization": "Basic x",
        }
        async with gateway.http.patch(url, headers=hop) as answer:
            assert answer.status == 501  # the echo function knows no PATCH: its own answer
        async with gateway.http.put(url, headers=hop) as answer:
            seen = await answer.json()
            assert answer.headers.getall("Set-Cookie") == ["a=1", "b=2"]
            assert "X-Private" not in answer.headers
        headers = dict(seen["headers"])
        assert (seen["method"], seen["path"]) == ("PUT", "/process?a=1%2F2&b=x+y")
        assert (headers["X-Kept"], headers["Authorization"]) == ("2", "Basic x")
        assert not {"X-Mine", "TE", "Cookie"} & headers.keys()
        assert headers["X-Forwarded-For"] == "127.0.0.1"
        assert headers["X-Forwarded-Host"] == answer.url.authority


@asynchronous
async def test_large_bodies_are_forwarded_with_a_length_and_in_chunks(tmp_path: Path) -> None:
    async def in_chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"y" * 100_000

    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        body = b"x" * 4_000_000
        async with gateway.http.post("/function/echo", data=io.BytesIO(body)) as answer:
            assert await answer.read() == body
        async with gateway.http.post("/function/echo", data=in_chunks()) as answer:
            assert await answer.read() == b"y" * 4_000_000
        async with gateway.http.post("/function/echo", data=b"z" * 100_000, expect100=True) as answer:
            assert await answer.read() == b"z" * 100_000


@asynchronous
async def test_an_answer_is_streamed(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        async with gateway.http.get("/function/echo/stream", params={"pipe": str(pipe)}) as answer:
            assert await answer.content.readany() == b"first"
            (await asyncio.to_thread(pipe.open, "wb")).close()
            assert await answer.content.read() == b"second"


@asynchronous
async def test_a_compressed_body_stays_compressed(tmp_path: Path) -> None:
    body = gzip.compress(b"hello")
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        headers = {"Content-Encoding": "gzip"}
        async with gateway.http.post("/function/echo", data=body, headers=headers) as answer:
            assert await answer.read() == body


@asynchronous
async def test_a_body_over_the_limit_gives_413(tmp_path: Path) -> None:
    async def in_chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"y" * 100

    async with echo_gateway(tmp_path, max_body_bytes=1000) as gateway:
        await gateway.deploy(deployment())
        assert await gateway.echo(b"x" * 1000) == (200, b"x" * 1000)
        assert (await gateway.echo(b"x" * 1001))[0] == 413
        async with gateway.http.post("/function/echo", data=in_chunks()) as answer:
            assert answer.status == 413
            assert (await answer.json())["error"]["code"] == "too_large"
        assert await gateway.echo() == (200, b"hello")


@asynchronous
async def test_an_incomplete_answer_breaks_the_callers_connection(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        async with gateway.http.get("/function/echo/half") as answer:
            assert answer.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()


@asynchronous
async def test_a_caller_that_neither_sends_nor_reads_is_ended_at_the_deadline(tmp_path: Path) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b"y" * 100
        await asyncio.sleep(60)

    async with echo_gateway(tmp_path, timeouts=Timeouts(start=20, call=1, stop=10)) as gateway:
        await gateway.deploy(deployment())
        async with asyncio.timeout(10):
            async with gateway.http.post("/function/echo", data=half()) as answer:
                assert answer.status == 504
            # More than all buffers on the way hold: the answer is never taken.
            async with gateway.http.post("/function/echo", data=io.BytesIO(b"x" * 20_000_000)) as answer:
                assert answer.status == 200
                # Scaling to zero waits for the call in flight.
                assert await gateway.scale(0) == 202
                with pytest.raises(aiohttp.ClientError):
                    await answer.read()


@asynchronous
async def test_a_call_ends_when_its_caller_leaves(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        pipe = tmp_path / "pipe"
        async with gateway.held_call(pipe) as held:
            held.cancel()
            async with asyncio.timeout(10):
                # Scaling to zero waits for the calls in flight.
                assert await gateway.scale(0) == 202
