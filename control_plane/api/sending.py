"""Sends responses, whole or as server-sent events. A client that does not read its response is cut off."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiohttp import web

SEND_SECONDS = 30.0
"""The longest that a client may take to make room for more data."""
HEARTBEAT_SECONDS = 7.0
"""The longest that a stream sends nothing. Proxies close silent streams after 10 s or more. A function that
is known to be broken fails within 5 s (`InvocationPolicy`), early enough for an error status of its own."""
_HEARTBEAT = b": waiting\n\n"
"""A comment, which clients ignore (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # Without it, nginx buffers tokens and heartbeats.
    "X-Accel-Buffering": "no",
}


async def send_whole(request: web.Request, response: web.Response) -> web.Response:
    """Send a response. Raises `ConnectionResetError` when the client does not read it in time."""
    async with _time_limit(request):
        await response.prepare(request)
        await response.write_eof()
    return response


async def send_part(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Send the next part of the body, after the head if that is not sent. Raises `ConnectionResetError`."""
    async with _time_limit(request):
        if not response.prepared:
            await response.prepare(request)
        await response.write(data)


class EventStream:
    """A response of server-sent events. Its head is sent with the first event or heartbeat."""

    def __init__(self, request: web.Request) -> None:
        self.response = web.StreamResponse(headers=_STREAM_HEADERS)
        self._request = request
        self._sending = asyncio.Lock()
        self._last = asyncio.get_running_loop().time()

    @property
    def begun(self) -> bool:
        """Whether the head, with status 200, was sent."""
        return self.response.prepared

    async def send(self, events: bytes) -> None:
        """Send whole events. Raises `ConnectionResetError` when the client does not read them in time."""
        async with self._sending:
            await send_part(self._request, self.response, events)
            self._last = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """While the context lasts, send a heartbeat whenever nothing else was sent for a while."""
        heart = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            # The lock prevents a cancel in the middle of sending, which could leave half a head.
            async with self._sending:
                heart.cancel()

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        # When the client closes the connection, the request is cancelled elsewhere.
        with suppress(ConnectionError):
            while True:
                silent = loop.time() - self._last
                if silent >= HEARTBEAT_SECONDS:
                    await self.send(_HEARTBEAT)
                else:
                    await asyncio.sleep(HEARTBEAT_SECONDS - silent)


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
