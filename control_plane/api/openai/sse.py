"""Server-sent events, and how answers are sent to clients that may not read them.

Server-sent events, as OpenAI's API streams them.

Sends answers to clients, who may not read them.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def event_stream() -> web.StreamResponse:
    """An answer that events are written to, once it is prepared."""
    return web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )


SEND_SECONDS = 30.0
"""How long a client may take to make room for more."""


async def send_whole(request: web.Request, response: web.Response) -> web.Response:
    """Send an answer; raises `ConnectionResetError` where the client does not take it."""
    async with _in_time(request):
        await response.prepare(request)
        await response.write_eof()
    return response


async def send_part(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Send some more of a stream, and its head before the first part. Raises as above."""
    async with _in_time(request):
        if not response.prepared:
            await response.prepare(request)
        await response.write(data)


@asynccontextmanager
async def _in_time(request: web.Request) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(SEND_SECONDS) as deadline:
            yield
    except TimeoutError as error:
        if not deadline.expired():
            raise
        if request.transport is not None:
            # Closed politely, it would wait for what is not read.
            request.transport.abort()
        raise ConnectionResetError("the client does not read its answer") from error
