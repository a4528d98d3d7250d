"""Who may ask, and for how much."""

import re
from dataclasses import dataclass, fields

from control_plane.errors import ConfigError

MIN_WEIGHT = 0.001
"""Counters of service are floats: what a smaller one would add to them could be lost."""
MAX_WEIGHT = 1000.0
MAX_BOUND = 10**12
"""Of the limits that are counts; far above all that is meant, and within a database's integers."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Limits:
    """A tenant's share and bounds; None is unlimited. Raises `ConfigError`."""

    weight: float = 1.0
    """When tenants compete: twice the weight is twice the service."""
    rpm: int | None = None
    """Requests per minute."""
    tpm: int | None = None
    """Tokens per minute, of prompts and answers together."""
    max_concurrency: int | None = None
    """Requests at once."""
    max_context: int | None = None
    """Tokens of prompt and output together, of one sequence."""
    max_output: int | None = None
    """Tokens of output, of one sequence."""

    def __post_init__(self) -> None:
        if not MIN_WEIGHT <= self.weight <= MAX_WEIGHT:
            raise ConfigError(f"weight must be from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}, not {self.weight}")
        for name in BOUNDS:
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_BOUND:
                raise ConfigError(f"{name} must be between 1 and {MAX_BOUND}, not {value}")


BOUNDS = tuple(field.name for field in fields(Limits) if field.name != "weight")
"""The names of those limits that can be None."""


@dataclass(frozen=True)
class Tenant:
    """Who is authenticated, limited, scheduled fairly and accounted. Raises `ConfigError` for a bad name."""

    name: str
    limits: Limits
    operator: bool = False
    """Whether its key may read what concerns all tenants."""
    created: float = 0.0
    """Unix time."""

    def __post_init__(self) -> None:
        check_name(self.name)


def check_name(name: str) -> None:
    """Raises `ConfigError` for what cannot be a tenant's name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"not a tenant's name: {name[:80]!r}; it has up to 64 letters, digits, dots, dashes and "
            "underscores, and begins with a letter or digit"
        )
