"""The engine's view of FaaS: all that it imports from this package."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from functions.contract.messages import Invocation, InvocationResult


@dataclass(frozen=True)
class ExpertUsage:
    """The cost of expert invocations: a running total, the difference of two totals, or a share of one.

    Counts are floats because a batch's cost is divided among its sequences.
    """

    invocations: float = 0
    cold_starts: float = 0
    """Answers that were the first of their function process."""
    cold_experts: float = 0
    """Experts whose weights a call had to wait for."""
    wire_bytes: float = 0
    """Bytes of request and response bodies."""
    seconds: float = 0.0
    """Compute time inside the functions, in seconds."""

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
        """The fraction `part` (0 to 1) of every number."""
        return ExpertUsage(
            self.invocations * part,
            self.cold_starts * part,
            self.cold_experts * part,
            self.wire_bytes * part,
            self.seconds * part,
        )


class PendingInvocations(Protocol):
    """Invocations that were sent and whose answers have not been read yet."""

    def wait(self) -> dict[str, InvocationResult]:
        """Block until every function has answered; the results by function name. To be called once.

        Raises a `GatewayError` when a function does not answer before the deadline.
        """


class ExpertInvoker(Protocol):
    """Invokes expert functions. One thread uses it, except for `abort`."""

    def begin(self, invocations: Mapping[str, Invocation]) -> PendingInvocations:
        """Send one invocation to each named function."""

    def prefetch(self, invocations: Mapping[str, Invocation]) -> None:
        """Send invocations without rows, which only ask for a prefetch. Waits for no answer.

        Functions whose process is not known to run are left out: a prefetch is no reason to start one.
        """

    @property
    def usage(self) -> ExpertUsage:
        """The total since the start."""

    def abort(self) -> None:
        """From another thread: make the wait in progress, and every later one, raise a `GatewayError`."""

    def close(self) -> None:
        """Close all connections."""


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
