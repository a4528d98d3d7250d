"""Errors in the form of Anthropic's API.

https://docs.claude.com/en/api/errors
"""

from typing import Any

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


def error_body(status: int, message: str, request_id: str) -> dict[str, Any]:
    """The JSON object of an error that has this status elsewhere."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
