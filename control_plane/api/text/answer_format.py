"""The data that answers of all APIs consist of, and the interface that builds them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from control_plane.api.text.choice import Piece
from control_plane.api.text.request import GenerationRequest
from control_plane.errors import FaaSMoEError
from control_plane.faas.invocation import ExpertUsage


@dataclass(frozen=True)
class Usage:
    """The cost of a request, so far or at its end."""

    prompt_tokens: int
    cached_tokens: int
    """Those of them that were there from earlier requests."""
    completion_tokens: int
    experts: ExpertUsage
    """The request's share of the expert calls."""


@dataclass(frozen=True)
class AnswerHead:
    """The fields that identify an answer."""

    request_id: str
    """A unique string, from which the answer's id is made."""
    model: str
    created: int
    """Arrival of the request, in seconds since 1970."""
    system_fingerprint: str


class AnswerFormat(Protocol):
    """Builds the answer to one request in the form of its API. A stream's parts are whole events."""

    request: GenerationRequest

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> Mapping[str, Any]:
        """The JSON of an answer that does not stream, from all pieces of each choice in order."""

    def begin(self, usage: Usage) -> bytes:
        """The events at the beginning of a stream, once the request is admitted."""

    def piece(self, index: int, piece: Piece, usage: Usage) -> bytes:
        """The events for a piece of the choice with this index; `usage` includes the piece."""

    def end(self, usage: Usage) -> bytes:
        """The events at the end of a stream, after the last piece of each choice."""

    def error(self, error: FaaSMoEError, request_id: str) -> bytes:
        """The events at the end of a stream that fails."""


_COMPACT = json.JSONEncoder(separators=(",", ":"))


def to_json(value: Any) -> str:
    """Compact JSON in ASCII: some clients treat U+2028 and similar characters as the end of a line."""
    return _COMPACT.encode(value)
