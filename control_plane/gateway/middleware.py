"""Middleware of the gateway: basic authentication, and errors as HTTP answers."""

import base64
import hmac
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from control_plane.errors import (
    ConfigError,
    FaaSMoEError,
    FunctionNotFound,
    FunctionUnavailable,
    GatewayError,
    InvocationTimeout,
    PartitionError,
)
from control_plane.faas.gateway_access import Credentials

# The first class that matches decides.
_STATUS_AND_CODE: Final = (
    (FunctionNotFound, 404, "function_not_found"),
    (FunctionUnavailable, 503, "function_unavailable"),
    (InvocationTimeout, 504, "invocation_timeout"),
    (GatewayError, 502, "function_failed"),
    (ConfigError, 400, "bad_request"),
    (PartitionError, 400, "bad_partition"),
    (FaaSMoEError, 500, "internal_error"),
)


def require_basic_auth(credentials: Credentials) -> Middleware:
    """A middleware that answers 401 to requests for `/system/` without the password (RFC 7617)."""
    secret = base64.b64encode(f"{credentials.user}:{credentials.password}".encode())

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        # The route that matched decides, not the path, which can be spelt in many ways.
        private = resource is not None and resource.canonical.startswith("/system/")
        if private and not _is_authorized(secret, request.headers.get("Authorization", "")):
            challenge = {"WWW-Authenticate": 'Basic realm="Restricted"'}
            return web.Response(status=401, text="invalid credentials\n", headers=challenge)
        return await handler(request)

    return authenticate


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into answers: JSON for invocations, as functions send it; a plain line for faas-cli."""
    try:
        return await handler(request)
    except FaaSMoEError as error:
        status, code = next(
            (status, code) for kind, status, code in _STATUS_AND_CODE if isinstance(error, kind)
        )
        if request.path.startswith("/function/"):
            return invocation_error(status, code, str(error))
        return web.Response(status=status, text=f"{error}\n")


def invocation_error(status: int, code: str, message: str) -> web.Response:
    """An error of an invocation. The header distinguishes it from an error that the function answered."""
    return web.json_response(
        {"error": {"code": code, "message": message}},
        status=status,
        headers={"X-OpenFaaS-Internal": "proxy"},
    )


def _is_authorized(secret: bytes, authorization: str) -> bool:
    scheme, _, given = authorization.partition(" ")
    # Constant time: a timing must not reveal how much of the password is right.
    return hmac.compare_digest(given.encode(errors="replace"), secret) and scheme.lower() == "basic"
