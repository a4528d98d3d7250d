"""Usage of tenants: one request's booking, and sums of bookings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Booking:
    """An amount to add to a tenant's usage."""

    tenant: str
    at: float
    """Unix time, in seconds."""
    requests: int
    prompt_tokens: int
    generated_tokens: int
    expert_invocations: float
    """The tenant's share of invocations; not whole where invocations had rows of several tenants."""
    expert_seconds: float


@dataclass(frozen=True)
class Usage:
    """A tenant's usage, summed over a period."""

    tenant: str
    requests: int
    prompt_tokens: int
    generated_tokens: int
    expert_invocations: float
    expert_seconds: float
