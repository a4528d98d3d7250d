"""Sends responses, whole or as server-sent events. A client that does not read its response is cut off."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

SEND_SECONDS = 30.0
"""The longest that a client may take to make room for more data."""


def event_stream() -> web.StreamResponse:
    """A response for server-sent events. `send_part` sends its head with the first events."""
    return web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )


async def send_whole(request: web.Request, response: web.Response) -> web.Response:
    """Send a response. Raises `ConnectionResetError` when the client does not read it in time."""
    async with _time_limit(request):
        await response.prepare(request)
        await response.write_eof()
    return response


async def send_part(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Send a part of a stream. Raises `ConnectionResetError` when the client does not read it in time."""
    async with _time_limit(request):
        if not response.prepared:
            await response.prepare(request)
        await response.write(data)


@asynccontextmanager
async def _time_limit(request: web.Request) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(SEND_SECONDS) as deadline:
            yield
    except TimeoutError as error:
        if not deadline.expired():
            raise
        if request.transport is not None:
            # A regular close would wait for the client to read all data.
            request.transport.abort()
        raise ConnectionResetError("the client does not read its answer") from error
