"""Reads the bodies of requests, bounded in size and time."""

import asyncio
from typing import Any

from aiohttp import web

from control_plane.api.bodies.reading import decode_json

MAX_BODY_BYTES = 4 << 20
LARGE_BODY_BYTES = 64 << 10
"""A larger body is decoded in a thread, so that it does not block the event loop."""
BODY_SECONDS = 30.0
"""The longest that a request's body may take to arrive."""


async def read_json(request: web.Request) -> Any:
    """Decode the body. Raises `BadRequest`."""
    # A page of another site can post text to an open server, but JSON only if the server agrees.
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(reason="the Content-Type must be application/json")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(reason="the body did not arrive in time") from error
    return await asyncio.to_thread(decode_json, body) if len(body) > LARGE_BODY_BYTES else decode_json(body)
