"""Splits an answer into thinking, which is between marks, and the rest."""

from dataclasses import dataclass

from control_plane.api.text.stop_strings import held_from
from control_plane.api.tools.parsing.source import SPACE


@dataclass(frozen=True)
class ThinkingMarks:
    """The marks at the beginning and the end of a model family's thinking."""

    open: str
    close: str


FAMILIES = (ThinkingMarks("<think>", "</think>"), ThinkingMarks("[THINK]", "[/THINK]"))


def thinking_marks(template: str) -> ThinkingMarks | None:
    """The marks that a chat template contains; None for models that do not think."""
    found = (marks for marks in FAMILIES if marks.open in template or marks.close in template)
    return next(found, None)


class ThinkingSplitter:
    """Splits one answer, which arrives in pieces. Only thinking at the beginning of the answer counts.

    Whitespace around the thinking is dropped.
    """

    def __init__(self, marks: ThinkingMarks, inside: bool) -> None:
        """`inside` says whether the prompt has opened the thinking."""
        self._marks = marks
        self._held = ""
        self._begun = False
        """Whether any thinking was returned."""
        self._state = self._inside if inside else self._start

    def split(self, text: str, last: bool) -> tuple[str, str]:
        """Add the next piece; returns (thinking, the rest)."""
        held, self._held = self._held + text, ""
        return self._state(held, last)

    def _start(self, text: str, last: bool) -> tuple[str, str]:
        begun = text.lstrip(SPACE)
        if begun.startswith(self._marks.open):
            self._state = self._inside
            return self._inside(begun[len(self._marks.open) :], last)
        if self._marks.open.startswith(begun) and not last:
            self._held = text
            return "", ""
        self._state = self._outside
        return "", text

    def _inside(self, text: str, last: bool) -> tuple[str, str]:
        if not self._begun:
            text = text.lstrip(SPACE)
        place = text.find(self._marks.close)
        if place >= 0:
            self._state = self._after
            return text[:place].rstrip(SPACE), self._after(text[place + len(self._marks.close) :], last)[1]
        end = len(text) if last else held_from(text, (self._marks.close,))
        thinking = text[:end].rstrip(SPACE)
        self._held = text[len(thinking) :]
        self._begun = self._begun or bool(thinking)
        return thinking, ""

    def _after(self, text: str, last: bool) -> tuple[str, str]:
        text = text.lstrip(SPACE)
        if text:
            self._state = self._outside
        return "", text

    def _outside(self, text: str, last: bool) -> tuple[str, str]:
        return "", text
