"""Joins the pieces of an answer to a message."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from control_plane.api.text.choice import Piece


@dataclass(frozen=True)
class ToolCall:
    """A complete tool call."""

    call_id: str
    name: str
    arguments: str
    """A JSON object."""


@dataclass(frozen=True)
class Message:
    """The content of an answer. A call that was cut, or is not a call, is part of its text."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> "Message":
        """The message of all pieces in order."""
        broken = {call.index for piece in pieces for call in piece.broken_calls}
        calls: dict[int, ToolCall] = {}
        for part in (part for piece in pieces for part in piece.tool_calls if part.index not in broken):
            call = calls.get(part.index, ToolCall(part.call_id, part.name, ""))
            calls[part.index] = replace(call, arguments=call.arguments + part.arguments)
        text = "".join(_text(piece) for piece in pieces)
        return cls(text, "".join(piece.reasoning for piece in pieces), tuple(calls.values()))


def _text(piece: Piece) -> str:
    """The text of a piece, with the text of its broken calls."""
    if not piece.broken_calls:
        return piece.text
    text, start = "", 0
    for call in piece.broken_calls:
        text += piece.text[start : call.place] + call.text
        start = call.place
    return text + piece.text[start:]
