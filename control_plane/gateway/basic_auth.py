"""HTTP basic authentication of a gateway's `/system/` routes (RFC 7617)."""

import base64
import hmac

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from control_plane.gateway_access import Credentials


def require_basic_auth(credentials: Credentials) -> Middleware:
    """A middleware that answers 401 to whoever does not know the password."""
    secret = base64.b64encode(f"{credentials.user}:{credentials.password}".encode())

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        # The route that matched decides, not the path, which can be spelt in many ways.
        private = resource is not None and resource.canonical.startswith("/system/")
        if private and not _knows(secret, request.headers.get("Authorization", "")):
            challenge = {"WWW-Authenticate": 'Basic realm="Restricted"'}
            return web.Response(status=401, text="invalid credentials\n", headers=challenge)
        return await handler(request)

    return authenticate


def _knows(secret: bytes, authorization: str) -> bool:
    scheme, _, given = authorization.partition(" ")
    # In a time that does not tell how much of it is right.
    return hmac.compare_digest(given.encode(errors="replace"), secret) and scheme.lower() == "basic"
