"""Collects the tool calls of one answer."""

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby

from control_plane.api.text.choice import ToolCallPart


class CallWriter:
    """Collects the parts of calls. A call is open from its name to its end."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self.whole = 0
        """The number of calls that have ended."""
        self.open = False
        self.expected = False
        """Whether the text of a call has begun and not ended, even if its name is not known yet."""
        self.index = -1
        """The number of the last call that has begun."""
        self._new_id = new_id
        self._parts: list[ToolCallPart] = []

    def expect(self) -> None:
        """Note that the text of a call begins."""
        self.expected = True

    def begin(self, name: str) -> None:
        """Begin the call of the tool with that name."""
        self.open = True
        self.index += 1
        self._parts.append(ToolCallPart(self.index, "", self._new_id(), name))

    def arguments(self, text: str) -> None:
        """Add the next part of the open call's arguments."""
        self._parts.append(ToolCallPart(self.index, text))

    def end(self) -> None:
        """End the open call: its arguments are complete."""
        self.whole += 1
        self.open = self.expected = False

    def give_up(self) -> None:
        """Note that the text is not a call."""
        self.open = self.expected = False

    def take(self) -> tuple[ToolCallPart, ...]:
        """The parts since the previous `take`: one for each call's name, and one for its arguments."""
        parts, self._parts = self._parts, []
        return tuple(
            replace(first, arguments=first.arguments + "".join(part.arguments for part in others))
            for _, (first, *others) in groupby(parts, lambda part: (part.index, part.name))
        )
