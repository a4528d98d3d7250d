"""Whether something that may help does: found out by doing without it now and then.

Reading ahead helps as long as the disk has time for it, and costs where it has none. Nothing that could be
asked tells which it is; how long steps take does.
"""

from statistics import median

TURN_STEPS = 4
"""With it, or without it, in a row."""
TURNS = 8
"""Of both together, before it is decided."""
KEPT_STEPS = 256
"""How long a decision stands."""


class Trial:
    """Tells for each step whether to do it. Steps are compared only with others of as many rows."""

    def __init__(self) -> None:
        self._rows = 0
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        self._kept = 0
        """Steps for which the last decision still stands."""
        self._decided = True

    @property
    def enabled(self) -> bool:
        """Whether to do it in the next step."""
        return self._decided if self._kept else self._steps // TURN_STEPS % 2 == 0

    def took(self, rows: int, seconds: float) -> None:
        """A step of so many rows has taken so long."""
        if self._kept:
            self._kept -= 1
            return
        if rows != self._rows:
            self._rows = rows
            self._forget()
            # What it was begun with may not be what a trial begins with.
            return
        self._seconds[self.enabled].append(seconds)
        if self._steps == TURN_STEPS * TURNS:
            self._decided = median(self._seconds[True]) <= median(self._seconds[False])
            self._kept = KEPT_STEPS
            self._forget()

    @property
    def _steps(self) -> int:
        return sum(map(len, self._seconds.values()))

    def _forget(self) -> None:
        self._seconds = {True: [], False: []}
