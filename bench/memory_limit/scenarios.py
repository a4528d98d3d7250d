"""What `make bench-memory` measures: systems, limits of memory, and numbers of sequences at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.memory_limit.results import Result
from control_plane.errors import ConfigError
from control_plane.quantities import parse_bytes

NO_LIMIT = "none"
FAASMOE, NO_PREFETCH, LLAMA = "faasmoe", "no-prefetch", "llama.cpp"
TITLES = {FAASMOE: "FaaSMoE", NO_PREFETCH: "FaaSMoE, no prefetch", LLAMA: "llama.cpp"}
"""Systems as they are asked for, and as the table names them."""
SEQUENCES = (1, 6)
SEQUENCES_WITHOUT_LIMIT = (1, 6, 32)


@dataclass(frozen=True)
class Scenario:
    """One system under one limit, with these numbers of sequences at once."""

    system: str
    """One of TITLES."""
    limit: str
    sequences: tuple[int, ...]

    @property
    def limit_bytes(self) -> int | None:
        """None: all of the machine."""
        return None if self.limit == NO_LIMIT else parse_bytes(self.limit)

    def result(self, sequences: int, **figures: Any) -> Result:
        """The part's result for so many sequences at once."""
        return Result(self.limit, TITLES[self.system], sequences, **figures)


def plan(limits: Sequence[str], systems: Sequence[str], sequences: tuple[int, ...] | None) -> list[Scenario]:
    """What to measure. Without prefetch only under limits, and one sequence if not asked for others."""
    parts = []
    for limit in limits:
        for system in systems:
            usual: tuple[int, ...] = SEQUENCES_WITHOUT_LIMIT if limit == NO_LIMIT else SEQUENCES
            if system == NO_PREFETCH:
                usual = () if limit == NO_LIMIT else (1,)
            if usual:
                parts.append(Scenario(system, limit, sequences or usual))
    return parts


def read_limit(text: str) -> str:
    """A limit as the table names it. Raises `ConfigError`."""
    if text != NO_LIMIT:
        parse_bytes(text)
    return text


def read_system(text: str) -> str:
    """Raises `ConfigError`."""
    if text not in TITLES:
        raise ConfigError(f"{text!r} is none of {', '.join(TITLES)}")
    return text
