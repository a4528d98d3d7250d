"""Decides which pages in browsers may use the API (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from aiohttp import web

from control_plane.api.middleware import Handler

_LOOPBACK = re.compile(r"https?://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.ASCII)
_HEADER_NAMES = re.compile(r"[\w-]+( ?, ?[\w-]+)*", re.ASCII)
_PREFLIGHT_SECONDS = 600
"""How long a browser may cache the answer to a preflight request."""


@dataclass(frozen=True)
class Origins:
    """The origins whose pages may read answers, and may use a server that needs no key."""

    allowed: Collection[str]
    """The allowed origins, in addition to those on loopback; "*" allows all."""

    def allows(self, origin: str) -> bool:
        """Whether pages of this origin are allowed. It is the value of a request's Origin header."""
        return "*" in self.allowed or origin in self.allowed or bool(_LOOPBACK.fullmatch(origin))

    def headers(self, request: web.Request) -> dict[str, str]:
        """Headers for every answer. They tell the browser whether the page may read it.

        They never allow cookies: the key is in a header, which only the page can set.
        """
        origin = request.headers.get("Origin")
        # A cache must not reuse an answer for a page of another origin.
        headers = {"Vary": "Origin"}
        if origin is not None and self.allows(origin):
            headers |= {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "*"}
        return headers

    @web.middleware
    async def preflight(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer preflight requests, with which browsers ask whether a page may send a request."""
        no_such_method = request.match_info.http_exception
        if (
            "Access-Control-Request-Method" not in request.headers
            or request.method != "OPTIONS"
            or not isinstance(no_such_method, web.HTTPMethodNotAllowed)
        ):
            return await handler(request)
        if not self.allows(request.headers.get("Origin", "")):
            raise web.HTTPForbidden(reason="pages of this origin are not allowed: see --cors-origin")
        headers = {
            "Access-Control-Allow-Methods": ", ".join(sorted(no_such_method.allowed_methods)),
            "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
        }
        # Allow all headers that the page asks for: only the one with the key gives any rights.
        asked = request.headers.get("Access-Control-Request-Headers", "")
        if _HEADER_NAMES.fullmatch(asked):
            headers["Access-Control-Allow-Headers"] = asked
        return web.Response(status=204, headers=headers)
