"""Splits what a model writes into thinking, text and tool calls."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from control_plane.api.text.choice import Piece
from control_plane.api.tools.calls import CallSplitter
from control_plane.api.tools.thinking import ThinkingSplitter


class Splitter:
    """See `AnswerSplitter`. Special tokens never become text of the answer."""

    def __init__(
        self, thinking: ThinkingSplitter | None, calls: CallSplitter | None, tokens: Mapping[int, str]
    ) -> None:
        """`tokens` are the special tokens that one of the two splitters needs to see."""
        self.tokens = tokens
        self._thinking = thinking
        self._calls = calls

    @property
    def called(self) -> bool:
        """See `AnswerSplitter`."""
        return self._calls is not None and self._calls.called

    @property
    def ended(self) -> bool:
        """See `AnswerSplitter`."""
        return self._calls is not None and self._calls.ended

    def split(self, text: str, last: bool) -> Piece:
        """See `AnswerSplitter`."""
        reasoning = ""
        if self._thinking:
            reasoning, text = self._thinking.split(text, last)
        piece = self._calls.split(text, last) if self._calls else Piece(without(text, self.tokens.values()))
        return replace(piece, reasoning=without(reasoning, self.tokens.values())) if reasoning else piece


def without(text: str, tokens: Collection[str]) -> str:
    """The text without the special tokens in it."""
    for token in tokens:
        text = text.replace(token, "")
    return text
