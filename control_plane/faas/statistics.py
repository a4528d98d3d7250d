"""What is known of each function from its answers."""

import time
from dataclasses import dataclass

from control_plane.faas.invocation import ExpertUsage
from functions.expert.wire import InvocationResult


@dataclass
class FunctionStatistics:
    """What has been asked of one function, as the caller sees it."""

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

    def record(self, sent: int, received: int, result: InvocationResult) -> ExpertUsage:
        """Count one answered invocation; returns what it has cost."""
        cold_start = result.instance != self.instance
        self.invocations += 1
        self.rows += len(result.output)
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
