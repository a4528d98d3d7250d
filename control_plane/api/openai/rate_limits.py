"""OpenAI's headers that tell a client how much of its limits is left."""

from control_plane.tenancy.limits.admission import Quota


def rate_limit_headers(quota: Quota) -> dict[str, str]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, for the limits that the tenant has."""
    headers = {}
    for kind, allowance in (("requests", quota.requests), ("tokens", quota.tokens)):
        if allowance is not None:
            headers[f"x-ratelimit-limit-{kind}"] = str(allowance.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(allowance.remaining)
            headers[f"x-ratelimit-reset-{kind}"] = duration(allowance.reset)
    return headers


def duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 7s, 1m30s."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
