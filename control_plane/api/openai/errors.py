"""The HTTP status and the JSON body of each domain error, as OpenAI's API has them.

How OpenAI's API tells an error.

Which HTTP status each domain error has: the one table, and the answers made of it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from control_plane import errors


def error_body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The JSON object; `param` names the field at fault."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


LONG_SECONDS = 60.0
"""A client had better not wait for longer than this."""


@dataclass(frozen=True)
class ErrorKind:
    """An error's status, and OpenAI's words for it."""

    status: int
    code: str | None = None
    type: str = ""

    def __post_init__(self) -> None:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        object.__setattr__(self, "type", self.type or kind)


_LIMITED = ErrorKind(429, "rate_limit_exceeded", "rate_limit_error")

KINDS: dict[type[errors.FaaSMoEError], ErrorKind] = {
    errors.FaaSMoEError: ErrorKind(500),
    errors.ConfigError: ErrorKind(500),
    errors.PartitionError: ErrorKind(500),
    errors.UnsupportedModel: ErrorKind(500),
    errors.GatewayError: ErrorKind(502),
    errors.FunctionNotFound: ErrorKind(503, "function_not_found"),
    errors.FunctionUnavailable: ErrorKind(503, "function_unavailable"),
    errors.InvocationTimeout: ErrorKind(504, "function_timeout"),
    errors.ProtocolError: ErrorKind(502),
    errors.EngineError: ErrorKind(500),
    errors.ContextLengthExceeded: ErrorKind(400, "context_length_exceeded"),
    errors.OutOfCache: ErrorKind(400, "context_length_exceeded"),
    errors.ShuttingDown: ErrorKind(503, "shutting_down"),
    errors.TenancyError: ErrorKind(500),
    errors.UnknownTenant: ErrorKind(404),
    errors.InvalidApiKey: ErrorKind(401, "invalid_api_key"),
    errors.RetryLater: _LIMITED,
    errors.QuotaExceeded: _LIMITED,
    errors.QueueFull: ErrorKind(429, "queue_full", "rate_limit_error"),
    errors.Overloaded: ErrorKind(503, "overloaded"),
    errors.BadRequest: ErrorKind(400),
    errors.UnknownModel: ErrorKind(404, "model_not_found"),
    errors.RequestTimeout: ErrorKind(504, "timeout"),
}


def describe(error: errors.FaaSMoEError) -> dict[str, Any]:
    """OpenAI's body for a domain error."""
    kind = KINDS[type(error)]
    return error_body(str(error), kind.type, getattr(error, "param", None), kind.code)


def error_response(error: errors.FaaSMoEError) -> web.Response:
    """The whole answer, with headers that say whether and when to try again."""
    status = KINDS[type(error)].status
    return web.json_response(describe(error), status=status, headers=_headers(error))


def _headers(error: errors.FaaSMoEError) -> Mapping[str, str]:
    if isinstance(error, errors.InvalidApiKey):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, errors.ShuttingDown):
        return {"Retry-After": "1"}
    if not isinstance(error, errors.RetryLater):
        return {}
    if error.retry_after is None:
        return {"x-should-retry": "false"}
    headers = {"Retry-After": str(math.ceil(error.retry_after))}
    return headers if error.retry_after <= LONG_SECONDS else {**headers, "x-should-retry": "false"}
