"""Errors in the form of Anthropic's API.

https://docs.claude.com/en/api/errors
"""

from typing import Any

from control_plane.api.openai.errors import domain_error_body
from control_plane.errors import ContextLengthExceeded, FaaSMoEError

PATH = "/v1/messages"
"""The paths of Anthropic's API begin with this."""

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_STATUSES = {503: 529}
"""Statuses that Anthropic's clients know by another number."""


def error_status(status: int) -> int:
    """The status in Anthropic's API of an error that has this one elsewhere."""
    return _STATUSES.get(status, status)


def error_message(error: FaaSMoEError, request_id: str) -> str:
    """What clients are told of an error. Claude Code knows by Anthropic's words that a chat is too long."""
    if isinstance(error, ContextLengthExceeded) and error.tokens:
        return f"prompt is too long: {error.tokens} maximum"
    return str(domain_error_body(error, request_id)["error"]["message"])


def error_body(status: int, message: str, request_id: str) -> dict[str, Any]:
    """The JSON object of an error that has this status elsewhere."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
