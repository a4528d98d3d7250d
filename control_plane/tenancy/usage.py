"""Usage of tenants: one request's booking, entries of bookings, and sums of bookings."""

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
class Entry:
    """Bookings that are written together, and only once however often they are written again."""

    writer: str
    """Random name of the server's process."""
    number: int
    """Each writer's entries are written in ascending order."""
    bookings: tuple[Booking, ...]


@dataclass(frozen=True)
class Spent:
    """The tokens booked to a tenant in the present day and month (UTC)."""

    day: int
    month: int
    day_ends: float
    """Seconds until the next day."""
    month_ends: float
    """Seconds until the next month."""
    ending: int = 0
    """Tokens of requests that have just ended. They may be booked already."""


@dataclass(frozen=True)
class Usage:
    """A tenant's usage, summed over a period."""

    tenant: str
    requests: int
    prompt_tokens: int
    generated_tokens: int
    expert_invocations: float
    expert_seconds: float
