"""Divides an answer into blocks: text, reasoning, and tool calls.

Some APIs number the parts of an answer, and send an event when each begins and ends.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from control_plane.api.text.chats import json_arguments
from control_plane.api.text.choice import Piece
from control_plane.engine.state.sequence import FinishReason


@dataclass
class Block:
    """A part of an answer that has only one kind of content."""

    index: int
    """The block's number in the answer, from 0."""
    kind: Literal["reasoning", "text", "tool_call"]
    call_id: str = ""
    name: str = ""
    """The tool that is called."""
    number: int = 0
    """The call's number in the answer, from 0."""
    cut: bool = False
    """Whether this block was open when the answer reached its limit."""
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The block's text so far; for a call, the JSON of its arguments."""
        return "".join(self.parts)

    @property
    def is_half_call(self) -> bool:
        """Whether this is a call with incomplete arguments."""
        return self.kind == "tool_call" and self.arguments is None

    @property
    def arguments(self) -> dict[str, Any] | None:
        """A call's arguments; None while their JSON is incomplete."""
        try:
            return json_arguments(self.text)
        except ValueError:
            return None


class Change(Enum):
    """What happens to a block."""

    OPENED = "opened"
    GREW = "grew"
    CLOSED = "closed"


Event = tuple[Change, Block, str]
"""A change, the block that changes, and the text that is added to it: "" unless it grew."""


class Blocks:
    """The blocks of one answer, in order. One is open at a time: content of another kind closes it."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self.finish_reason: FinishReason | None = None
        self.stop_string = ""
        self.reasoning_tokens = 0
        """The number of tokens that the reasoning consists of."""
        self._open: Block | None = None

    def add(self, piece: Piece) -> Iterator[Event]:
        """Add the next piece of the answer; yields the changes. The last piece closes the last block."""
        if piece.reasoning:
            self.reasoning_tokens += len(piece.token_ids)
            yield from self._grow("reasoning", piece.reasoning)
        if piece.text:
            yield from self._grow("text", piece.text)
        for part in piece.tool_calls:
            yield from self._grow("tool_call", part.arguments, part.index, part.call_id, part.name)
        if piece.finish_reason:
            self.finish_reason, self.stop_string = piece.finish_reason, piece.stop_string
            if self._open:
                self._open.cut = piece.finish_reason == FinishReason.LENGTH
            yield from self._close()

    def add_all(self, pieces: Iterable[Piece]) -> None:
        """Add all pieces of an answer that does not stream. An incomplete call becomes text."""
        written: dict[int, str] = {}
        for piece in pieces:
            for _ in self.add(piece):
                pass
            written |= {call.index: call.text for call in piece.broken_calls}
        for block in self.all:
            if block.kind == "tool_call" and (block.number in written or block.is_half_call):
                block.kind = "text"
                block.parts = [written.get(block.number, block.text)]

    def _grow(
        self,
        kind: Literal["reasoning", "text", "tool_call"],
        text: str,
        number: int = 0,
        call_id: str = "",
        name: str = "",
    ) -> Iterator[Event]:
        block = self._open
        if block is None or (block.kind, block.number) != (kind, number):
            yield from self._close()
            block = self._open = Block(len(self.all), kind, call_id, name, number)
            self.all.append(block)
            yield Change.OPENED, block, ""
        if text:
            block.parts.append(text)
            yield Change.GREW, block, text

    def _close(self) -> Iterator[Event]:
        if self._open is not None:
            closed, self._open = self._open, None
            yield Change.CLOSED, closed, ""
