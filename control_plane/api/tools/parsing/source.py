"""Text that arrives in pieces, for parsers that can pause until more of it arrives."""

import re
from collections.abc import Callable, Generator
from typing import TypeVar

from control_plane.api.text.stop_strings import held_from

Result = TypeVar("Result")
Parse = Generator[None, None, Result]
"""A parser. It yields when it needs more text than has arrived."""
Write = Callable[[str], object]
"""Takes the next part of what a parser reads."""

SPACE = " \t\r\n"


class NotACall(Exception):
    """The text is not a tool call, although it begins like one."""


class Source:
    """The text that a parser reads, and remembers since the last `mark`."""

    def __init__(self) -> None:
        self._text = ""
        self._place = 0
        self._read: list[str] = []

    def add(self, text: str) -> None:
        """Add the next piece of text."""
        self._read.append(self._text[: self._place])
        self._text = self.unread + text
        self._place = 0

    @property
    def unread(self) -> str:
        """The text that has arrived and has not been read."""
        return self._text[self._place :]

    @property
    def read(self) -> str:
        """The text that was read since the last `mark`."""
        return "".join(self._read) + self._text[: self._place]

    def mark(self) -> None:
        """Forget what was read."""
        self._read.clear()
        self._text, self._place = self.unread, 0

    def read_rest(self) -> None:
        """Read all that has arrived."""
        self._place = len(self._text)

    def peek(self) -> Parse[str]:
        """The next character, which stays unread."""
        while self._place == len(self._text):
            yield
        return self._text[self._place]

    def next(self) -> Parse[str]:
        """Read a character."""
        character = yield from self.peek()
        self._place += 1
        return character

    def take(self, pattern: re.Pattern[str]) -> str:
        """Read the part of the text that has arrived and matches the pattern; it may be empty."""
        start = self._place
        found = pattern.match(self._text, start)
        self._place = found.end() if found else start
        return self._text[start : self._place]

    def skip_space(self) -> Parse[None]:
        """Read whitespace, up to the next other character."""
        while (yield from self.peek()) in SPACE:
            self._place += 1

    def accept(self, text: str) -> Parse[bool]:
        """Read this text if it comes next; returns whether it does."""
        while len(self.unread) < len(text) and text.startswith(self.unread):
            yield
        found = self._text.startswith(text, self._place)
        self._place += len(text) if found else 0
        return found

    def expect(self, text: str) -> Parse[None]:
        """Read this text. Raises `NotACall` if other text comes next."""
        if not (yield from self.accept(text)):
            raise NotACall

    def until(self, ends: tuple[str, ...], write: Write) -> Parse[None]:
        """Read to the first of the ends, and past it; write the text before it."""
        while (found := first_mark(self._text, ends, self._place)) is None:
            self._write_up_to(held_from(self._text, ends, self._place), write)
            yield
        place, end = found
        self._write_up_to(place, write)
        self._place += len(end)

    def _write_up_to(self, place: int, write: Write) -> None:
        if place > self._place:
            write(self._text[self._place : place])
            self._place = place


def first_mark(text: str, marks: tuple[str, ...], start: int = 0) -> tuple[int, str] | None:
    """The place of the first mark in the text from `start` on, and the mark; None if there is none."""
    found = ((text.find(mark, start), mark) for mark in marks)
    return min(((place, mark) for place, mark in found if place >= 0), default=None)
