"""What is known of each function from its answers."""

import time
from dataclasses import dataclass, field

from control_plane.faas.invocation import ExpertUsage
from functions.expert.wire import InvocationResult


@dataclass(slots=True)
class LayerStatistics:
    """What has been asked of one function's experts of one layer."""

    invocations: int = 0
    rows: int = 0
    seconds: float = 0.0
    """The function's own compute time."""


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
    resident_experts: int = 0
    resident_bytes: int = 0
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
        self.resident_experts = result.resident_experts
        self.resident_bytes = result.resident_bytes
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
