"""Counts the invocations of each function, and follows the reports of the weights that it holds."""

import time
from dataclasses import dataclass, field, replace

from control_plane.faas.invocation import ExpertUsage
from functions.contract.messages import InvocationResult, ResidencyReport

_COUNTED = (
    *("read_bytes", "prefetched_experts", "prefetch_hits", "prefetch_wasted_bytes"),
    *("evicted_for_room", "evicted_for_limit", "evicted_for_idleness"),
)
"""The fields of a report that only grow while its process lives."""


@dataclass(slots=True)
class LayerStatistics:
    """Totals of the answered invocations of one function's experts of one layer."""

    invocations: int = 0
    rows: int = 0
    seconds: float = 0.0
    """Compute time inside the function."""


@dataclass(frozen=True)
class ResidencyHistory:
    """The residency reports of a function's successive processes."""

    last: ResidencyReport = field(default_factory=ResidencyReport)
    """The newest report of the newest process."""
    ended: ResidencyReport = field(default_factory=ResidencyReport)
    """The counts of all earlier processes, added up."""

    @property
    def totals(self) -> ResidencyReport:
        """The newest report, with its counts summed over all processes."""
        return replace(
            self.last, **{name: getattr(self.last, name) + getattr(self.ended, name) for name in _COUNTED}
        )

    def after(self, report: ResidencyReport, new_process: bool) -> "ResidencyHistory":
        """The history with one more report."""
        return ResidencyHistory(report, self.totals if new_process else self.ended)

    def observed(self, report: ResidencyReport) -> "ResidencyHistory":
        """The history with a report that did not come with an invocation, unless the report is older.

        It may be older because such a request and the invocations overtake each other. The first report of
        a new process looks older, too; the process's first invocation corrects that.
        """
        older = any(getattr(report, name) < getattr(self.last, name) for name in _COUNTED)
        return self if older else self.after(report, new_process=False)


class ReportedResidency:
    """The newest residency history of one function, from two sources with one thread each.

    The invoker's thread calls `record`, the event loop calls `observe`, and any thread reads. Each of the
    two attributes has one writer and is replaced as a whole, so that no lock is needed on the hot path.
    """

    __slots__ = ("_invoked", "_observed")

    def __init__(self) -> None:
        self._invoked = ResidencyHistory()
        """The history as of the last invocation."""
        self._observed = self._invoked, self._invoked
        """The value of `_invoked` when a report was last observed, and the history with that report."""

    def record(self, report: ResidencyReport | None, new_process: bool) -> None:
        """Take the report that came with an invocation; None says that the last one still holds."""
        if report is None and new_process:
            report = ResidencyReport()
        if report is not None:
            self._invoked = self._history.after(report, new_process)

    def observe(self, report: ResidencyReport) -> None:
        """Take a report that came without an invocation."""
        invoked = self._invoked
        self._observed = invoked, self._history.observed(report)

    @property
    def last(self) -> ResidencyReport:
        """The newest report of the newest process."""
        return self._history.last

    @property
    def totals(self) -> ResidencyReport:
        """The newest report, with its counts summed over all processes."""
        return self._history.totals

    @property
    def _history(self) -> ResidencyHistory:
        # An observed report holds until the next invocation, whose own report already accounts for it.
        invoked, (base, observed) = self._invoked, self._observed
        return observed if base is invoked else invoked


@dataclass(slots=True)
class UsageCounter:
    """A running total of all functions' `ExpertUsage`, which is added to with every answer."""

    invocations: int = 0
    cold_starts: int = 0
    cold_experts: int = 0
    wire_bytes: int = 0
    seconds: float = 0.0

    def add(self, result: InvocationResult, nbytes: int, cold_start: bool) -> None:
        """Add one answer, with the bytes of both bodies."""
        self.invocations += 1
        self.cold_starts += cold_start
        self.cold_experts += result.cold_experts
        self.wire_bytes += nbytes
        self.seconds += result.seconds

    @property
    def total(self) -> ExpertUsage:
        """The total until now."""
        return ExpertUsage(
            self.invocations, self.cold_starts, self.cold_experts, self.wire_bytes, self.seconds
        )


@dataclass
class FunctionStatistics:
    """Totals of the answered invocations of one function.

    The invoker's thread alone writes them, any thread may read. Reports from elsewhere go to
    `residency.observe`.
    """

    invocations: int = 0
    rows: int = 0
    retries: int = 0
    cold_starts: int = 0
    cold_experts: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0
    """Compute time inside the function."""
    last_call: float = 0.0
    """The time.time() of the last answer."""
    residency: ReportedResidency = field(default_factory=ReportedResidency)
    instance: str = ""
    """Identifies the process that answered last."""
    kernel: str | None = None
    """The kernel of that process, once it has named it."""
    layers: dict[int, LayerStatistics] = field(default_factory=dict)

    def record(self, layer: int, sent: int, received: int, result: InvocationResult) -> bool:
        """Count one answered invocation with bodies of `sent` and `received` bytes.

        Returns whether it was the first answer of the function's process.
        """
        rows = len(result.output)
        self._record_layer(layer, rows, result.seconds)
        cold_start = result.instance != self.instance
        self.invocations += 1
        self.rows += rows
        self.bytes_sent += sent
        self.bytes_received += received
        self.cold_starts += cold_start
        self.instance = result.instance
        if cold_start or result.kernel is not None:
            self.kernel = result.kernel
        self.cold_experts += result.cold_experts
        self.residency.record(result.residency, cold_start)
        self.seconds += result.seconds
        self.last_call = time.time()
        return cold_start

    def _record_layer(self, layer: int, rows: int, seconds: float) -> None:
        if layer not in self.layers:
            # A new dict, because another thread may be iterating over the old one.
            self.layers = {**self.layers, layer: LayerStatistics()}
        counted = self.layers[layer]
        counted.invocations += 1
        counted.rows += rows
        counted.seconds += seconds
