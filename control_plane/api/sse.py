"""Server-sent events, as OpenAI's API streams them."""

import json
from collections.abc import Mapping
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
