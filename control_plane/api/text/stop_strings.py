"""Where an answer's text ends because of a stop string."""

from collections.abc import Iterable


class StopStrings:
    """Cuts a text that comes in pieces before the first stop string in it.

    What might be the beginning of one is held back. Of two that overlap, the one that begins first counts.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.stopped = False
        """Whether a stop string has come; there is no text after it."""

    def add(self, text: str) -> tuple[str, bool]:
        """(the text that cannot be part of a stop string any more, whether one has come)."""
        if not self._stops:
            return text, False
        self._held += text
        found, open_at = self._first_stop(), self._first_beginning()
        if found is not None and found <= open_at:
            return self._cut(found), True
        emitted, self._held = self._held[:open_at], self._held[open_at:]
        return emitted, False

    def finish(self) -> str:
        """What was held back, up to a stop string in it, when no more text comes."""
        found = self._first_stop()
        if found is not None:
            return self._cut(found)
        emitted, self._held = self._held, ""
        return emitted

    def _cut(self, place: int) -> str:
        emitted, self._held = self._held[:place], ""
        self.stopped = True
        return emitted

    def _first_stop(self) -> int | None:
        places = (self._held.find(stop) for stop in self._stops)
        return min((place for place in places if place >= 0), default=None)

    def _first_beginning(self) -> int:
        """Where a stop string may have begun that goes on in the next piece; the text's length if nowhere."""
        held = self._held
        for place in range(max(len(held) - self._longest + 1, 0), len(held)):
            tail = held[place:]
            if any(stop.startswith(tail) for stop in self._stops):
                return place
        return len(held)
