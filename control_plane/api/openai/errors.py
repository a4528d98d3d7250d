"""The HTTP status of each domain error, and its JSON body in OpenAI's form."""

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from control_plane import errors
from control_plane.api.openai.headers import error_headers
from control_plane.http import error_body, error_type


@dataclass(frozen=True)
class ErrorKind:
    """The HTTP status of an error, with its code and type in OpenAI's terms."""

    status: int
    code: str | None = None
    type: str = ""
    """OpenAI's type of the error; "" is the general type for the status."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", self.type or error_type(self.status))


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
    errors.DatabaseUnavailable: ErrorKind(503, "database_unavailable"),
    errors.BadRequest: ErrorKind(400),
    errors.UnknownModel: ErrorKind(404, "model_not_found"),
    errors.RequestTimeout: ErrorKind(504, "timeout"),
}


def domain_error_body(error: errors.FaaSMoEError) -> dict[str, Any]:
    """The JSON object of a domain error."""
    kind = KINDS[type(error)]
    return error_body(str(error), kind.type, getattr(error, "param", None), kind.code)


def error_response(error: errors.FaaSMoEError) -> web.Response:
    """The response to a request that raised a domain error."""
    status = KINDS[type(error)].status
    return web.json_response(domain_error_body(error), status=status, headers=error_headers(error))
