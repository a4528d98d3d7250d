"""Measures the engine's time by part of a step: each lap charges the time since the last lap to one part."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class StepPart(StrEnum):
    """The parts of a step. Those from `DENSE` to `ADD` repeat in every MoE layer."""

    DENSE = "dense"
    """Plan the step (before the first layer); compute embeddings, norms, attention and routers."""
    SEND = "send"
    """Group rows by function, and send the invocations."""
    PREFETCH = "prefetch"
    """Predict the next layer's experts, and send hints to the functions that hold them."""
    SHARED = "shared"
    """Compute a shared expert while the functions compute."""
    WAIT = "wait"
    """Wait for the functions' answers."""
    ADD = "add"
    """Add up the answers."""
    HEAD = "head"
    """Compute logits."""
    SAMPLE = "sample"
    """Draw tokens, and look up log-probabilities."""
    SCHEDULE = "schedule"
    """Commit the step, and send tokens to their streams. Planning is part of `DENSE`."""


@dataclass
class Stopwatch:
    """Sums of seconds by part. Only the engine's thread may use it."""

    clock: Callable[[], float] = time.perf_counter
    steps: int = 0
    """Number of completed steps."""
    _seconds: dict[StepPart, float] = field(default_factory=lambda: dict.fromkeys(StepPart, 0.0))
    _since: float = 0.0

    @property
    def seconds(self) -> Mapping[StepPart, float]:
        """Total seconds of each part: a copy."""
        return dict(self._seconds)

    def start(self) -> None:
        """Charge the time until now to no part."""
        self._since = self.clock()

    def lap(self, part: StepPart) -> None:
        """Charge the time since the last lap to `part`."""
        now = self.clock()
        self._seconds[part] += now - self._since
        self._since = now
