"""Keeps pages in browsers off the gateway, which serves programs.

A page can send requests to any address that its browser reaches, also to 127.0.0.1: under the browser's name
for that address, or under a name of its own that it points there (DNS rebinding).
"""

import ipaddress
from functools import lru_cache
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from yarl import URL

_FROM_THIS_GATEWAY: Final = ("same-origin", "none")
"""The values of Sec-Fetch-Site for a page of the gateway's own, and for an address that a person typed."""


def refuse_pages(bound_host: str) -> Middleware:
    """A middleware that answers 403 to requests from pages of other servers.

    Browsers name the page's server in Origin with every request that can change something, and most name its
    relation to the gateway with every request. If the gateway listens on loopback only, the Host must also be
    an IP address, a name of loopback, or `bound_host`: a name of somebody else's is a page's.
    """

    on_loopback = _is_loopback(bound_host)

    @lru_cache(maxsize=64)
    def is_ours(host: str) -> bool:
        name = _name(host)
        return _is_address_or_loopback(name) or name == bound_host.lower()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if on_loopback and not is_ours(host):
            return _refusal(f"Host: this gateway is not called {host[:80]!r}, but {bound_host}")
        origin = request.headers.get("Origin")
        if origin is not None and not (origin == f"http://{host}" and is_ours(host)):
            return _refusal("Origin: pages of other servers are refused")
        if request.headers.get("Sec-Fetch-Site", "none") not in _FROM_THIS_GATEWAY:
            return _refusal("Sec-Fetch-Site: pages of other servers are refused")
        return await handler(request)

    return check


def _name(host: str) -> str:
    """The name or address in a Host header, without the port; "" for a malformed one."""
    try:
        return (URL(f"http://{host}").host or "").lower()
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_address_or_loopback(host: str) -> bool:
    """Whether no DNS server is asked for a host."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return True


def _refusal(reason: str) -> web.Response:
    return web.Response(status=403, text=f"{reason}\n")
