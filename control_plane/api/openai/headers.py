"""The headers by which OpenAI's API reports limits, and whether to retry a request."""

import math

from control_plane import errors
from control_plane.tenancy.limits.admission import Quota

LONG_SECONDS = 60.0
"""Clients should not wait longer than this before they retry."""

_RETRY_SECONDS: dict[type[errors.FaaSMoEError], int] = {
    errors.ShuttingDown: 1,
    errors.FunctionUnavailable: 5,
    errors.FunctionNotFound: 30,
}
"""The `Retry-After` of errors that end by themselves, or by the operator's doing."""


def error_headers(error: errors.FaaSMoEError) -> dict[str, str]:
    """The headers of an error response: whether and when to retry, and how to authenticate."""
    if isinstance(error, errors.InvalidApiKey):
        # Claude Code would try the same key for minutes.
        return {"WWW-Authenticate": "Bearer", "x-should-retry": "false"}
    for kind, seconds in _RETRY_SECONDS.items():
        if isinstance(error, kind):
            return {"Retry-After": str(seconds)}
    # The same tokens would fail again.
    if isinstance(error, errors.TokenizerError):
        return {"x-should-retry": "false"}
    if not isinstance(error, errors.RetryLater):
        return {}
    if error.retry_after is None:
        return {"x-should-retry": "false"}
    headers = {"Retry-After": str(math.ceil(error.retry_after))}
    return headers if error.retry_after <= LONG_SECONDS else {**headers, "x-should-retry": "false"}


def rate_limit_headers(quota: Quota) -> dict[str, str]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, for each limit that the tenant has."""
    headers = {}
    for kind, allowance in (("requests", quota.requests), ("tokens", quota.tokens)):
        if allowance is not None:
            headers[f"x-ratelimit-limit-{kind}"] = str(allowance.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(allowance.remaining)
            headers[f"x-ratelimit-reset-{kind}"] = _duration(allowance.reset)
    return headers


def _duration(seconds: float) -> str:
    """Format as OpenAI does: 120ms, 7s, 1m30s."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
