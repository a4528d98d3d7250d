"""Ends the text of an answer at a stop string."""

from collections.abc import Iterable


class StopStrings:
    """Cuts a text, which arrives in pieces, at the first stop string in it.

    Text that may be the beginning of a stop string is held back. Of two that overlap,
    the first to begin counts.
    """

    def __init__(self, stops: Iterable[str], include: bool = False) -> None:
        """`include` says whether the text ends after the stop string instead of before it."""
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self._immune = 0
        """Stop strings that end within so many characters of the held text do not count."""
        self.found = ""
        """The stop string that was found; "" if there was none. The text ends there."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return bool(self.found)

    def add(self, text: str, may_end: bool = True) -> tuple[str, bool]:
        """Add text; returns (the text that can no longer be part of a stop string, whether one was found).

        Stop strings that end in this text count only if `may_end`.
        """
        if not self._stops:
            return text, False
        self._held += text
        if not may_end:
            self._immune = len(self._held)
        found, open_at = self._first_stop(), held_from(self._held, self._stops)
        if found is not None and found[0] <= open_at:
            return self._cut(*found), True
        emitted, self._held = self._held[:open_at], self._held[open_at:]
        self._immune = max(self._immune - open_at, 0)
        return emitted, False

    def finish(self) -> str:
        """The text held back, up to a stop string in it, once there is no more to come."""
        found = self._first_stop()
        if found is not None:
            return self._cut(*found)
        emitted, self._held = self._held, ""
        return emitted

    def _cut(self, start: int, end: int) -> str:
        self.found = self._held[start:end]
        emitted, self._held = self._held[: end if self._include else start], ""
        return emitted

    def _first_stop(self) -> tuple[int, int] | None:
        """Where the first stop string begins and ends; if two begin there, the shorter one."""
        places = (
            (self._held.find(stop, max(self._immune - len(stop) + 1, 0)), len(stop)) for stop in self._stops
        )
        found = ((start, start + length) for start, length in places if start >= 0)
        return min(found, default=None)


def held_from(text: str, marks: tuple[str, ...], start: int = 0) -> int:
    """Where a mark may begin that the next piece completes, from `start` on; the text's length if nowhere."""
    longest = max(map(len, marks), default=0)
    for place in range(max(len(text) - longest + 1, start), len(text)):
        if any(mark.startswith(text[place:]) for mark in marks):
            return place
    return len(text)
