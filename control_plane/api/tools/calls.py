"""Splits the text of an answer into tool calls and other text."""

from collections.abc import Callable

from control_plane.api.text.choice import BrokenCall, Piece
from control_plane.api.text.request import ToolUse
from control_plane.api.text.stop_strings import held_from
from control_plane.api.tools.parsing.source import SPACE, NotACall, Parse, Source, first_mark
from control_plane.api.tools.parsing.tool_format import ToolFormat
from control_plane.api.tools.parsing.writer import CallWriter


class CallSplitter:
    """Splits one answer, which arrives in pieces. Whitespace around calls is dropped.

    It returns a call's arguments as they arrive. If something turns out not to be a call, or is cut, it is
    returned as text, or as a `BrokenCall` if parts of it were returned before.
    """

    def __init__(
        self, form: ToolFormat, use: ToolUse, only_first: bool = False, hide: Callable[[str], str] = str
    ) -> None:
        """`only_first` says that calls count only at the beginning of the answer, as some formats do anyway.

        `hide` removes from a text what the client must not see.
        """
        self._form = form
        self._only_first = only_first or form.only_first
        self._hide = hide
        self._parallel = use.parallel
        self._tools = [tool["function"] for tool in use.tools]
        self._calls = CallWriter(form.new_id)
        self._source = Source()
        self._reading: Parse[None] | None = None
        self._held = ""
        self._has_text = False
        self._text = ""
        self._broken: list[BrokenCall] = []

    @property
    def called(self) -> bool:
        """Whether the answer has a complete call."""
        return self._calls.whole > 0

    @property
    def ended(self) -> bool:
        """Whether the answer has as many calls as are allowed."""
        return self.called and not self._parallel

    def split(self, text: str, last: bool) -> Piece:
        """Add the next piece; returns the text and the parts of calls that are certain."""
        rest: str | None = text
        while rest is not None:
            rest = self._read_text(rest) if self._reading is None else self._read_call(rest)
        if last:
            self._finish()
        piece = Piece(self._text, tool_calls=self._calls.take(), broken_calls=tuple(self._broken))
        self._text, self._broken = "", []
        return piece

    def _read_text(self, text: str) -> str | None:
        """Add the text before the first call to the output; returns the rest of the text."""
        text, self._held = self._held + text, ""
        if self.ended:
            return None
        found = first_mark(text, self._form.marks) if self._may_call(text) else None
        if found is None:
            end = held_from(text, self._form.marks) if self._may_call(text) else len(text)
            end = len(text[:end].rstrip(SPACE))
            self._held = text[end:]
            self._give_out(text[:end])
            return None
        end = len(text[: found[0]].rstrip(SPACE))
        self._give_out(text[:end])
        self._source = Source()
        self._calls.expect()
        self._reading = self._read()
        return text[end:]

    def _read(self) -> Parse[None]:
        """Read calls and the whitespace before them, which is text if they turn out not to be calls."""
        yield from self._source.skip_space()
        yield from self._form.read(self._source, self._calls, self._tools)

    def _may_call(self, text: str) -> bool:
        """Whether a call may begin in the text."""
        if not self._only_first:
            return True
        begun = text.lstrip(SPACE)
        return not self._has_text and any(
            begun.startswith(mark) or mark.startswith(begun) for mark in self._form.marks
        )

    def _read_call(self, text: str) -> str | None:
        """Read more of a call; returns the text after it once it has ended."""
        assert self._reading is not None
        self._source.add(text)
        try:
            next(self._reading)
        except StopIteration:
            pass
        except NotACall:
            self._give_up()
        else:
            if not self.ended:
                return None
        self._reading = None
        return self._source.unread

    def _give_up(self) -> None:
        if self._calls.open:
            text = self._hide(self._source.read)
            self._broken.append(BrokenCall(self._calls.index, text, len(self._text)))
        elif self._calls.expected:
            self._give_out(self._source.read)
        self._calls.give_up()

    def _finish(self) -> None:
        """Add the text that was held back to the output, at the end of the answer."""
        if self._reading is not None and self._calls.expected:
            self._source.read_rest()
            self._give_up()
        elif self._held.strip(SPACE) or not self.called:
            self._give_out(self._held)
        self._held = ""

    def _give_out(self, text: str) -> None:
        text = self._hide(text)
        self._text += text
        self._has_text = self._has_text or bool(text.strip(SPACE))
