"""The clients of the chaos test against servers that answer rightly, wrongly, in part and not at all."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from tempfile import TemporaryFile

import pytest
from aiohttp import web

from bench.comparison.greedy import GreedyAnswer
from bench.robustness.chaos import streams
from bench.robustness.chaos.streams import Attempt, Ending, Flow, Streams, connected
from bench.robustness.stack import Part
from control_plane.http import serving

KNOWN = GreedyAnswer([1, 2], [5, 6, 7])
DONE = b"data: [DONE]\n\n"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def events(*tokens: int) -> bytes:
    chunks = ({"choices": [{"token_ids": [token]}]} for token in tokens)
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


@asynccontextmanager
async def clients(handler: Handler) -> AsyncIterator[Streams]:
    app = web.Application()
    app.router.add_post("/v1/completions", handler)
    with TemporaryFile() as log:
        async with serving(app, "127.0.0.1", 0) as url:
            part = Part(lambda port: (), log, {}, url=str(url).rstrip("/"))
            async with connected(part, {"acme": "key"}, [KNOWN]) as asking:
                yield asking


def ask(handler: Handler) -> Attempt:
    async def run() -> Attempt:
        async with clients(handler) as asking:
            return await asking.ask("acme", KNOWN, Flow())

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "ending", "wrong"),
    [
        (events(5, 6, 7) + DONE, Ending.COMPLETED, 0),
        (events(5, 9, 9) + DONE, Ending.COMPLETED, 2),
        (events(5, 6, 7, 8) + DONE, Ending.COMPLETED, 1),
        (events(5, 6) + DONE, Ending.LOST, 0),
        (events(5, 6, 7), Ending.LOST, 0),
        (events(5, 9) + b'data: {"error": {"message": "x"}}\n\n' + DONE, Ending.LOST, 1),
        (b"data: {nonsense\n\n" + DONE, Ending.LOST, 0),
        (b"", Ending.LOST, 0),
    ],
)
def test_an_answer_is_completed_only_if_it_is_whole(body: bytes, ending: Ending, wrong: int) -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer key"
        assert (await request.json())["max_tokens"] == 3
        return web.Response(body=body)

    attempt = ask(answer)
    assert (attempt.ending, attempt.wrong) == (ending, wrong)


@pytest.mark.parametrize(
    ("status", "ending"),
    [
        (429, Ending.REFUSED),
        (503, Ending.REFUSED),
        (500, Ending.LOST),
        (404, Ending.LOST),
        (504, Ending.LOST),
    ],
)
def test_only_some_statuses_are_refusals(status: int, ending: Ending) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Retry-After": "3"})

    attempt = ask(refuse)
    assert (attempt.ending, attempt.retry_after) == (ending, 3.0)


def test_a_broken_connection_is_excused_only_by_the_control_plane_s_end() -> None:
    async def run(kill_at: str) -> Ending:
        async def cut(request: web.Request) -> web.Response:
            asking.server.kills += kill_at == "meanwhile"
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        async with clients(cut) as asking:
            asking.server.kills = int(kill_at == "before")
            return (await asking.ask("acme", KNOWN, Flow())).ending

    endings = [asyncio.run(run(kill_at)) for kill_at in ("never", "before", "meanwhile")]
    assert endings == [Ending.LOST, Ending.CUT, Ending.CUT]


def test_a_request_without_a_server_is_refused_and_was_not_sent() -> None:
    async def run() -> Attempt:
        with TemporaryFile() as log:
            async with connected(
                Part(lambda port: (), log, {}, "http://127.0.0.1:1"), {"a": "k"}, []
            ) as asking:
                return await asking.ask("a", KNOWN, Flow())

    attempt = asyncio.run(run())
    assert (attempt.ending, attempt.sent) == (Ending.REFUSED, False)


def test_an_answer_that_does_not_come_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "ATTEMPT_SECONDS", 0.2)

    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(20)
        return web.Response()

    assert ask(hang).ending is Ending.LOST


def test_a_refused_request_comes_again_and_its_wait_goes_on() -> None:
    bodies: list[object] = []
    answered = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        if len(bodies) == 1:
            return web.Response(status=503, headers={"Retry-After": "0.3"})
        answered.set()
        return web.Response(body=events(5, 6, 7) + DONE)

    async def run() -> Streams:
        async with clients(answer) as asking:
            async with asking.running(1, seed=0):
                await asyncio.wait_for(answered.wait(), 20)
            return asking

    asking = asyncio.run(run())
    assert [each.ending for each in asking.attempts[:2]] == [Ending.REFUSED, Ending.COMPLETED]
    assert bodies[0] == bodies[1]
    assert asking.flows[0].stalls[0].seconds >= 0.3
