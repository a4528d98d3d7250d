"""Reads the JSON bodies of `/system`, whose senders may be anyone that reaches the gateway."""

import asyncio
from typing import Final

import msgspec
from aiohttp import web

from control_plane.errors import ConfigError

MAX_BYTES: Final = 1 << 16
"""The longest body: far longer than a function's specification or a secret, and short enough to keep many."""
READ_SECONDS: Final = 30.0
_JSON: Final = "application/json"


async def read_json(request: web.Request) -> object:
    """The decoded body of a request.

    Raises ConfigError if it is not JSON, and HTTP errors for one of another type (415), one that is too long
    (413) or one that does not arrive in time (408).
    """
    # OpenFaaS' Go client sends no type. Neither may a page in a browser, but its Origin gives it away; what
    # must not pass is the type of a form or of plain text, which a page can send to any server.
    if "Content-Type" in request.headers and request.content_type != _JSON:
        raise web.HTTPUnsupportedMediaType(text=f"the body must be {_JSON}\n")
    try:
        async with asyncio.timeout(READ_SECONDS):
            body = await _read(request)
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body did not arrive within {READ_SECONDS:g} s\n") from None
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise ConfigError("cannot read the request: it is nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"cannot read the request: {error}") from None


async def _read(request: web.Request) -> bytes:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BYTES:
            raise web.HTTPRequestEntityTooLarge(
                MAX_BYTES, len(body), text=f"a body may have {MAX_BYTES} bytes at most\n"
            )
    return bytes(body)
