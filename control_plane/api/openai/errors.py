"""The HTTP status of each domain error, and its JSON body in OpenAI's form."""

from dataclasses import dataclass
from typing import Any

from control_plane import errors
from control_plane.http import error_body, error_type


@dataclass(frozen=True)
class ErrorKind:
    """The HTTP status of an error, with its code and type in OpenAI's terms."""

    status: int
    code: str | None = None
    type: str = ""
    """OpenAI's type of the error; "" is the general type for the status."""
    text: str = ""
    """What clients are told, where the error's own text names files, addresses or parts of the system."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", self.type or error_type(self.status))


_LIMITED = ErrorKind(429, "rate_limit_exceeded", "rate_limit_error")
INTERNAL = ErrorKind(500, text="internal error")
"""The kind of errors that concern nobody but the operator."""

KINDS: dict[type[errors.FaaSMoEError], ErrorKind] = {
    errors.FaaSMoEError: INTERNAL,
    errors.ConfigError: INTERNAL,
    errors.PartitionError: INTERNAL,
    errors.UnsupportedModel: INTERNAL,
    errors.HubError: INTERNAL,
    errors.HubUnreachable: INTERNAL,
    errors.GatewayError: ErrorKind(502, text="the gateway of the model's functions refused or failed"),
    errors.FunctionNotFound: ErrorKind(
        503, "function_not_found", text="a function of the model is not deployed"
    ),
    errors.FunctionUnavailable: ErrorKind(
        503, "function_unavailable", text="a function of the model could not be reached"
    ),
    errors.InvocationTimeout: ErrorKind(
        504, "function_timeout", text="a function of the model did not answer in time"
    ),
    errors.ProtocolError: ErrorKind(502, text="a function of the model gave an answer that is not valid"),
    errors.EngineError: ErrorKind(500, text="the engine could not run the request"),
    errors.ContextLengthExceeded: ErrorKind(400, "context_length_exceeded"),
    errors.OutOfCache: ErrorKind(400, "context_length_exceeded"),
    errors.ShuttingDown: ErrorKind(503, "shutting_down"),
    errors.TenancyError: ErrorKind(500, text="the tenants' database cannot be used"),
    errors.UnknownTenant: ErrorKind(404),
    errors.InvalidApiKey: ErrorKind(401, "invalid_api_key"),
    errors.ExpiredApiKey: ErrorKind(401, "expired_api_key"),
    errors.RetryLater: _LIMITED,
    errors.QuotaExceeded: _LIMITED,
    errors.BudgetExceeded: ErrorKind(429, "insufficient_quota", "insufficient_quota"),
    errors.QueueFull: ErrorKind(429, "queue_full", "rate_limit_error"),
    errors.Overloaded: ErrorKind(503, "overloaded"),
    errors.DatabaseUnavailable: ErrorKind(
        503, "database_unavailable", text="the tenants' database cannot be used now"
    ),
    errors.TokenizerError: ErrorKind(
        500, "tokenizer_failed", text="the model's tokenizer fails on this request"
    ),
    errors.BadRequest: ErrorKind(400),
    errors.UnknownModel: ErrorKind(404, "model_not_found"),
    errors.UnknownObject: ErrorKind(404, "not_found"),
    errors.StorageFull: ErrorKind(507, "storage_full"),
    errors.RequestTimeout: ErrorKind(504, "timeout"),
}


def domain_error_body(error: errors.FaaSMoEError, request_id: str) -> dict[str, Any]:
    """The JSON object of a domain error. What is for the operator only is in the log, by the request's id."""
    kind = KINDS[type(error)]
    text = with_reference(kind.text, request_id) if kind.text else str(error)
    return error_body(text, kind.type, getattr(error, "param", None), kind.code)


def with_reference(text: str, request_id: str) -> str:
    """The text of an error whose reason is in the log."""
    return f"{text}; the server's log has the reason, by the request id {request_id}"
