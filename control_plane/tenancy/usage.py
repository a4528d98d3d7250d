"""What is accounted to tenants."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Booking:
    """What to add to a tenant's account, at a Unix time."""

    tenant: str
    at: float
    requests: int
    prompt_tokens: int
    generated_tokens: int
    expert_invocations: float
    """With a fraction where an invocation had rows of several tenants."""
    expert_seconds: float


@dataclass(frozen=True)
class Usage:
    """A tenant's sums."""

    tenant: str
    requests: int
    prompt_tokens: int
    generated_tokens: int
    expert_invocations: float
    expert_seconds: float
