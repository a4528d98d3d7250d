"""Where the engine's time goes: a stopwatch that is read off between the parts of a step."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class StepPart(StrEnum):
    """What the engine's thread does, in a layer's order, then a step's."""

    DENSE = "dense"
    """Embeddings, norms, attention and routers."""
    SEND = "send"
    """Rows are sorted by function, and sent."""
    PREFETCH = "prefetch"
    """Functions are told what to read ahead."""
    SHARED = "shared"
    """A shared expert, while functions compute."""
    WAIT = "wait"
    """For functions, after that."""
    ADD = "add"
    """Their answers are added up."""
    HEAD = "head"
    """Logits."""
    SAMPLE = "sample"
    """Tokens are drawn, and log probabilities looked up."""
    SCHEDULE = "schedule"
    """Between steps: tokens go out, the next batch is chosen."""


@dataclass
class Stopwatch:
    """Belongs to the engine's thread; others may read `seconds`."""

    clock: Callable[[], float] = time.perf_counter
    steps: int = 0
    """That came to their end."""
    _seconds: dict[StepPart, float] = field(default_factory=lambda: dict.fromkeys(StepPart, 0.0))
    _since: float = 0.0

    @property
    def seconds(self) -> Mapping[StepPart, float]:
        """Of each part, in all: a copy."""
        return dict(self._seconds)

    def start(self) -> None:
        """What was until now is no part of a step."""
        self._since = self.clock()

    def lap(self, part: StepPart) -> None:
        """What was since the last lap, was this."""
        now = self.clock()
        self._seconds[part] += now - self._since
        self._since = now
