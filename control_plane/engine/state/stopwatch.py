"""Measures where the engine's time goes: each lap charges the time since the lap before to one part."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class StepPart(StrEnum):
    """The parts of a step, in the order in which they occur: those of a layer, then those of the step."""

    DENSE = "dense"
    """Embeddings, norms, attention and routers."""
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
    """Between steps: send tokens to their streams, and plan the next step."""


@dataclass
class Stopwatch:
    """Belongs to the engine's thread."""

    clock: Callable[[], float] = time.perf_counter
    steps: int = 0
    """Completed steps."""
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
