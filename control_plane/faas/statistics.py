"""What is known of each function from its answers."""

import time
from dataclasses import dataclass, field, replace

from control_plane.faas.invocation import ExpertUsage
from functions.contract.messages import InvocationResult, ResidencyReport

_COUNTED = (
    *("read_bytes", "prefetched_experts", "prefetch_hits", "prefetch_wasted_bytes"),
    *("evicted_for_room", "evicted_for_limit", "evicted_for_idleness"),
)
"""Of a report, what only grows as long as its process lives."""


@dataclass(slots=True)
class LayerStatistics:
    """What has been asked of one function's experts of one layer."""

    invocations: int = 0
    rows: int = 0
    seconds: float = 0.0
    """The function's own compute time."""


@dataclass(frozen=True)
class ResidencyHistory:
    """What a function's processes, one after the other, have reported of the weights that they held."""

    last: ResidencyReport = field(default_factory=ResidencyReport)
    """The last process's last one."""
    ended: ResidencyReport = field(default_factory=ResidencyReport)
    """What the processes before it had counted, added up."""

    @property
    def totals(self) -> ResidencyReport:
        """The last report, with its counts over all processes."""
        return replace(
            self.last, **{name: getattr(self.last, name) + getattr(self.ended, name) for name in _COUNTED}
        )

    def after(self, report: ResidencyReport, new_process: bool) -> "ResidencyHistory":
        """With one report more."""
        return ResidencyHistory(report, self.totals if new_process else self.ended)

    def beside(self, report: ResidencyReport) -> "ResidencyHistory":
        """With one that came beside the invocations, and not in their order: an older one is left out.

        One of a process that has answered no invocation yet looks like an old one.
        """
        older = any(getattr(report, name) < getattr(self.last, name) for name in _COUNTED)
        return self if older else self.after(report, new_process=False)


@dataclass
class FunctionStatistics:
    """What has been asked of one function, as the caller sees it. One thread writes, any may read."""

    invocations: int = 0
    rows: int = 0
    retries: int = 0
    cold_starts: int = 0
    cold_experts: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0
    """The function's own compute time."""
    last_call: float = 0.0
    """time.time() of the last answer."""
    residency: ResidencyHistory = field(default_factory=ResidencyHistory)
    instance: str = ""
    layers: dict[int, LayerStatistics] = field(default_factory=dict)

    def record(self, layer: int, sent: int, received: int, result: InvocationResult) -> ExpertUsage:
        """Count one answered invocation of a layer's experts; returns what it has cost."""
        rows = len(result.output)
        self._record_layer(layer, rows, result.seconds)
        cold_start = result.instance != self.instance
        self.invocations += 1
        self.rows += rows
        self.bytes_sent += sent
        self.bytes_received += received
        self.cold_starts += cold_start
        self.instance = result.instance
        self.cold_experts += result.cold_experts
        self.residency = self.residency.after(result.residency, cold_start)
        self.seconds += result.seconds
        self.last_call = time.time()
        return ExpertUsage(1, int(cold_start), result.cold_experts, sent + received, result.seconds)

    def _record_layer(self, layer: int, rows: int, seconds: float) -> None:
        if layer not in self.layers:
            # A new dict: another thread may be iterating over the old one.
            self.layers = {**self.layers, layer: LayerStatistics()}
        counted = self.layers[layer]
        counted.invocations += 1
        counted.rows += rows
        counted.seconds += seconds
