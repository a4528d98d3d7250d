"""Tenants and their limits."""

import re
from dataclasses import dataclass, fields
from typing import Annotated

from msgspec import Meta

from control_plane.errors import ConfigError
from control_plane.validation import check_settings

MIN_WEIGHT = 0.001
"""Least weight. The scheduler's counters are floats, and rounding could lose a smaller weight's service."""
MAX_WEIGHT = 1000.0
MAX_BOUND = 10**12
"""Largest bound: far above every sensible limit, and within the range of a database's integers."""

Weight = Annotated[
    float, Meta(ge=MIN_WEIGHT, le=MAX_WEIGHT, description=f"a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}")
]
Bound = Annotated[int, Meta(ge=1, le=MAX_BOUND, description=f"a whole number from 1 to {MAX_BOUND}")]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Limits:
    """A tenant's weight and bounds; None is unlimited. Raises `ConfigError`, which names the limit."""

    weight: Weight = 1.0
    """The tenant's share when tenants compete: twice the weight gets twice the service."""
    rpm: Bound | None = None
    """Most requests per minute."""
    tpm: Bound | None = None
    """Most tokens per minute, of prompts and outputs together."""
    max_concurrency: Bound | None = None
    """Most requests at the same time."""
    max_context: Bound | None = None
    """Most tokens of one sequence, of prompt and output together."""
    max_output: Bound | None = None
    """Most tokens of one sequence's output."""
    tokens_per_day: Bound | None = None
    """Most tokens of a day (UTC), of prompts and outputs together."""
    tokens_per_month: Bound | None = None
    """Most tokens of a calendar month (UTC), of prompts and outputs together."""

    @property
    def has_budgets(self) -> bool:
        """Whether there is a limit per day or per month."""
        return any(getattr(self, name) is not None for name in BUDGETS)

    def __post_init__(self) -> None:
        check_settings(vars(self), {limit.name: limit.type for limit in fields(self)})


BUDGETS = ("tokens_per_day", "tokens_per_month")
"""The names of the limits that count what was booked."""
BOUNDS = tuple(limit.name for limit in fields(Limits) if limit.name != "weight")
"""The names of the limits that can be None."""


@dataclass(frozen=True)
class Tenant:
    """The unit of authentication, limits, fairness and usage. Raises `ConfigError` for a bad name."""

    name: str
    limits: Limits
    operator: bool = False
    """Whether the tenant's key may read the metrics of all tenants."""
    created: float = 0.0
    """Unix time, in seconds."""

    def __post_init__(self) -> None:
        check_name(self.name)


def check_name(name: str, what: str = "a tenant's name") -> None:
    """Raise `ConfigError` unless `name` is a valid name for a tenant or a key."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"not {what}: {name[:80]!r}; it has up to 64 letters, digits, dots, dashes and "
            "underscores, and begins with a letter or digit"
        )
