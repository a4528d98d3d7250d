"""How the gateway tells its errors over HTTP."""

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from control_plane.errors import (
    ConfigError,
    FaaSMoEError,
    FunctionNotFound,
    FunctionUnavailable,
    GatewayError,
    InvocationTimeout,
    PartitionError,
)

# The first class that fits counts.
_STATUS_AND_CODE: Final = (
    (FunctionNotFound, 404, "function_not_found"),
    (FunctionUnavailable, 503, "function_unavailable"),
    (InvocationTimeout, 504, "invocation_timeout"),
    (GatewayError, 502, "function_failed"),
    (ConfigError, 400, "bad_request"),
    (PartitionError, 400, "bad_partition"),
    (FaaSMoEError, 500, "internal_error"),
)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Callers of functions get JSON, as functions give it; faas-cli gets the plain line that it prints."""
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
    """An error of an invocation; the header tells it from one that the function itself has answered."""
    return web.json_response(
        {"error": {"code": code, "message": message}},
        status=status,
        headers={"X-OpenFaaS-Internal": "proxy"},
    )
