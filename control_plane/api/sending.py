"""Sends responses, whole or as server-sent events. A client that does not read its response is cut off."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiohttp import web

SEND_SECONDS = 30.0
"""The longest that a client may take to make room for more data."""
HEARTBEAT_SECONDS = 7.0
"""How long a stream may be silent. Proxies give one up after 10 s and more. The error of a function that is
known to be broken comes within 5 s (`InvocationPolicy`), and can so have its own status."""
_HEARTBEAT = b": waiting\n\n"
"""A comment, which clients ignore (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # nginx would collect tokens, and keep back the heartbeats.
    "X-Accel-Buffering": "no",
}


async def send_whole(request: web.Request, response: web.Response) -> web.Response:
    """Send a response. Raises `ConnectionResetError` when the client does not read it in time."""
    async with _time_limit(request):
        await response.prepare(request)
        await response.write_eof()
    return response


async def send_part(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Send the head, if it is not sent, and the next part of the body. Raises `ConnectionResetError`."""
    async with _time_limit(request):
        if not response.prepared:
            await response.prepare(request)
        await response.write(data)


class EventStream:
    """A response of server-sent events. Its head goes out with the first of them, or with a heartbeat."""

    def __init__(self, request: web.Request) -> None:
        self.response = web.StreamResponse(headers=_STREAM_HEADERS)
        self._request = request
        self._sending = asyncio.Lock()
        self._last = asyncio.get_running_loop().time()

    @property
    def begun(self) -> bool:
        """Whether the head is sent, and with it the status 200."""
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
            # Not amid its sending, which would leave half a head.
            async with self._sending:
                heart.cancel()

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        # Whoever closes the connection also cancels the request.
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
