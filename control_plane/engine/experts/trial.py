"""An A/B trial that finds out whether prefetching makes steps faster.

Prefetching helps while the disk has time to spare, and slows steps down otherwise. Neither can be observed
directly, so steps are timed with and without it.
"""

from statistics import median

TURN_STEPS = 4
"""Consecutive steps with prefetching, or without it, before the other's turn."""
TURNS = 8
"""Turns in a trial, half of them with prefetching."""
KEPT_STEPS = 256
"""Steps for which the result of a trial is kept before the next trial."""


class Trial:
    """Decides for each step whether to prefetch. Only steps of equally many rows are compared."""

    def __init__(self) -> None:
        self._rows = 0
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        """The durations of the trial's steps, with (True) and without prefetching."""
        self._kept = 0
        """Steps for which the last result still holds."""
        self._decided = True

    @property
    def enabled(self) -> bool:
        """Whether to prefetch in the next step."""
        return self._decided if self._kept else self._steps // TURN_STEPS % 2 == 0

    def record(self, rows: int, seconds: float) -> None:
        """Count a step of `rows` rows that took `seconds`."""
        if self._kept:
            self._kept -= 1
            return
        if rows != self._rows:
            self._rows = rows
            self._restart()
            # This step may have run without prefetching, but a trial starts with it.
            return
        self._seconds[self.enabled].append(seconds)
        if self._steps == TURN_STEPS * TURNS:
            # The median, because a few slow steps say nothing about prefetching.
            self._decided = median(self._seconds[True]) <= median(self._seconds[False])
            self._kept = KEPT_STEPS
            self._restart()

    @property
    def _steps(self) -> int:
        return sum(map(len, self._seconds.values()))

    def _restart(self) -> None:
        self._seconds = {True: [], False: []}
