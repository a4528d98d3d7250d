"""Ends the text of an answer at a stop string."""

from collections.abc import Iterable


class StopStrings:
    """Cuts a text, which arrives in pieces, before the first stop string in it.

    Text that may be the beginning of a stop string is held back. Of two that overlap,
    the first to begin counts.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found = ""
        """The stop string that was found; "" if there was none. The text ends there."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return bool(self.found)

    def add(self, text: str) -> tuple[str, bool]:
        """Add text; returns (the text that can no longer be part of a stop string, whether one was found)."""
        if not self._stops:
            return text, False
        self._held += text
        found, open_at = self._first_stop(), self._first_beginning()
        if found is not None and found <= open_at:
            return self._cut(found), True
        emitted, self._held = self._held[:open_at], self._held[open_at:]
        return emitted, False

    def finish(self) -> str:
        """The text held back, up to a stop string in it, once there is no more to come."""
        found = self._first_stop()
        if found is not None:
            return self._cut(found)
        emitted, self._held = self._held, ""
        return emitted

    def _cut(self, place: int) -> str:
        self.found = next(stop for stop in self._stops if self._held.startswith(stop, place))
        emitted, self._held = self._held[:place], ""
        return emitted

    def _first_stop(self) -> int | None:
        places = (self._held.find(stop) for stop in self._stops)
        return min((place for place in places if place >= 0), default=None)

    def _first_beginning(self) -> int:
        """Where a stop string may begin that the next piece continues; the length of the text if nowhere."""
        held = self._held
        for place in range(max(len(held) - self._longest + 1, 0), len(held)):
            tail = held[place:]
            if any(stop.startswith(tail) for stop in self._stops):
                return place
        return len(held)
