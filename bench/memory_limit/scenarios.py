"""Scenarios of `make bench-memory`: systems, memory limits, and numbers of sequences at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.memory_limit.results import Result
from control_plane.errors import ConfigError
from control_plane.quantities import parse_bytes

NO_LIMIT = "none"
FAASMOE, NO_PREFETCH = "faasmoe", "no-prefetch"
TITLES = {FAASMOE: "FaaSMoE", NO_PREFETCH: "FaaSMoE, no prefetch"}
"""Names of the systems in the table, by their names on the command line."""
SEQUENCES = (1, 6)
SEQUENCES_WITHOUT_LIMIT = (1, 6, 32)


@dataclass(frozen=True)
class Scenario:
    """One system under one memory limit."""

    system: str
    """The system to measure: a key of `TITLES`."""
    limit: str
    """A size, such as "5GB", or NO_LIMIT."""
    sequences: tuple[int, ...]
    """Numbers of sequences at once, each of which is measured."""

    @property
    def limit_bytes(self) -> int | None:
        """The limit in bytes; None without one."""
        return None if self.limit == NO_LIMIT else parse_bytes(self.limit)

    def result(self, sequences: int, **figures: Any) -> Result:
        """A result of this scenario for a number of sequences at once."""
        return Result(self.limit, TITLES[self.system], sequences, **figures)


def plan(limits: Sequence[str], systems: Sequence[str], sequences: tuple[int, ...] | None) -> list[Scenario]:
    """The scenarios to measure. `sequences` replaces the default numbers of sequences.

    Without prefetch, only limits are measured, and by default only one sequence.
    """
    scenarios = []
    for limit in limits:
        for system in systems:
            default: tuple[int, ...] = SEQUENCES_WITHOUT_LIMIT if limit == NO_LIMIT else SEQUENCES
            if system == NO_PREFETCH:
                default = () if limit == NO_LIMIT else (1,)
            if default:
                scenarios.append(Scenario(system, limit, sequences or default))
    return scenarios


def read_limit(text: str) -> str:
    """Check a limit of the command line. Raises `ConfigError`."""
    if text != NO_LIMIT:
        parse_bytes(text)
    return text


def read_system(text: str) -> str:
    """Check a system of the command line. Raises `ConfigError`."""
    if text not in TITLES:
        raise ConfigError(f"{text!r} is none of {', '.join(TITLES)}")
    return text
