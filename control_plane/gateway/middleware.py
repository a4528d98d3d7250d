"""Middleware of the gateway: basic authentication, and errors as HTTP answers."""

import base64
import hmac
import math
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
from control_plane.gateway.provider.function import FunctionKeepsDying

MAX_MESSAGE: Final = 500
"""The most characters of an error that an answer has: a caller's own text may be a megabyte long."""

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
        headers = _advice(error) if status == 503 else {}
        if request.path.startswith("/function/"):
            response = invocation_error(status, code, str(error))
            response.headers.update(headers)
            return response
        return web.Response(status=status, text=one_line(str(error)) + "\n", headers=headers)


def invocation_error(status: int, code: str, message: str) -> web.Response:
    """An error of an invocation. The header distinguishes it from an error that the function answered."""
    return web.json_response(
        {"error": {"code": code, "message": one_line(message)}},
        status=status,
        headers={"X-OpenFaaS-Internal": "proxy"},
    )


def one_line(message: str) -> str:
    """A message without line breaks, cut to a length that terminals and logs can show."""
    text = " ".join(message.split())
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "..."


def _advice(error: FaaSMoEError) -> dict[str, str]:
    """When to try again: in whole seconds (RFC 9110, section 10.2.3)."""
    seconds = error.retry_after if isinstance(error, FunctionKeepsDying) else 1.0
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _is_authorized(secret: bytes, authorization: str) -> bool:
    scheme, _, given = authorization.partition(" ")
    # Constant time: a timing must not reveal how much of the password is right.
    return hmac.compare_digest(given.encode(errors="replace"), secret) and scheme.lower() == "basic"
