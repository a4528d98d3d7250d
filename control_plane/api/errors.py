"""Which HTTP status each domain error has: the one table, and the middleware that applies it."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from control_plane import errors
from control_plane.api.openai import error_body

logger = logging.getLogger(__name__)

STATUS: dict[type[errors.FaaSMoEError], int] = {
    errors.FaaSMoEError: 500,
    errors.ConfigError: 500,
    errors.PartitionError: 500,
    errors.UnsupportedModel: 500,
    errors.GatewayError: 502,
    errors.FunctionNotFound: 503,
    errors.FunctionUnavailable: 503,
    errors.InvocationTimeout: 504,
    errors.ProtocolError: 502,
    errors.EngineError: 500,
    errors.ContextLengthExceeded: 400,
    errors.OutOfCache: 400,
    errors.BadRequest: 400,
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def describe(error: errors.FaaSMoEError) -> dict[str, Any]:
    """OpenAI's body for a domain error."""
    kind = "invalid_request_error" if STATUS[type(error)] < 500 else "server_error"
    code = "context_length_exceeded" if isinstance(error, errors.ContextLengthExceeded) else None
    return error_body(str(error), kind, getattr(error, "param", None), code)


@web.middleware
async def json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as OpenAI's JSON, with its status."""
    try:
        return await handler(request)
    except errors.FaaSMoEError as error:
        return web.json_response(describe(error), status=STATUS[type(error)])
    except web.HTTPException as error:
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        return web.json_response(error_body(error.reason, kind, None, None), status=error.status)
    except Exception:
        # The edge of a request: the next one is served.
        logger.exception("%s %s failed", request.method, request.path)
        return web.json_response(error_body("internal error", "server_error", None, None), status=500)
