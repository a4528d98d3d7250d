"""What the engine knows of FaaS, and no more."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from functions.contract.wire import Invocation, InvocationResult


@dataclass(frozen=True)
class ExpertUsage:
    """What calling functions has cost: a running total, the difference of two, or a share of it."""

    invocations: float = 0
    cold_starts: float = 0
    """Function processes that answered for the first time."""
    cold_experts: float = 0
    """Experts that a function used for the first time."""
    wire_bytes: float = 0
    """Bodies, both ways."""
    seconds: float = 0.0
    """Compute time inside the functions."""

    def __add__(self, other: "ExpertUsage") -> "ExpertUsage":
        return ExpertUsage(
            self.invocations + other.invocations,
            self.cold_starts + other.cold_starts,
            self.cold_experts + other.cold_experts,
            self.wire_bytes + other.wire_bytes,
            self.seconds + other.seconds,
        )

    def __sub__(self, other: "ExpertUsage") -> "ExpertUsage":
        return ExpertUsage(
            self.invocations - other.invocations,
            self.cold_starts - other.cold_starts,
            self.cold_experts - other.cold_experts,
            self.wire_bytes - other.wire_bytes,
            self.seconds - other.seconds,
        )

    def share(self, part: float) -> "ExpertUsage":
        """That part of it, from 0 to 1."""
        return ExpertUsage(
            self.invocations * part,
            self.cold_starts * part,
            self.cold_experts * part,
            self.wire_bytes * part,
            self.seconds * part,
        )


class ExpertInvoker(Protocol):
    """Calls expert functions, from one thread."""

    def begin(self, invocations: Mapping[str, Invocation]) -> Callable[[], dict[str, InvocationResult]]:
        """Send one invocation to each named function; the returned call waits for all the answers.

        The wait raises a `GatewayError` when a function stays away.
        """

    def prefetch(self, invocations: Mapping[str, Invocation]) -> None:
        """Tell functions that are awake what to expect, by invocations without rows. Waits for nothing."""

    @property
    def usage(self) -> ExpertUsage:
        """The total so far."""

    def abort(self) -> None:
        """From another thread: end the wait in progress, and every later one, with a `GatewayError`."""

    def close(self) -> None:
        """Release what the invoker holds."""


@dataclass
class ResidentLimits:
    """The most bytes of expert weights that each function may hold, as every invocation states it.

    The autoscaler replaces the mapping and the engine's thread reads it. The mapping itself never changes,
    and replacing a reference is atomic, so neither side needs a lock.
    """

    by_function: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}), init=False)
    """A function that is not in it has no limit."""

    def replace(self, by_function: Mapping[str, int]) -> None:
        """Set all limits at once."""
        self.by_function = MappingProxyType(dict(by_function))
