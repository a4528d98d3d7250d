"""A ragged batch: the rows of several sequences in one array, each with its own past in the KV cache."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.kv_cache import CacheRows
from control_plane.engine.state.kv_pages import KVPages


@dataclass(frozen=True)
class Span:
    """The place of one chunk: its rows in the flat batch, and its sequence's past in the cache."""

    first_row: int
    lane: int
    start: int
    end: int

    @property
    def length(self) -> int:
        """Number of rows."""
        return self.end - self.start

    @property
    def rows(self) -> slice:
        """The chunk's rows in the batch."""
        return slice(self.first_row, self.first_row + self.length)


def spans_of(chunks: Sequence[Chunk], pages: KVPages) -> list[Span]:
    """The places of these chunks. Each sequence must hold memory for its chunk."""
    spans = []
    row = 0
    for chunk in chunks:
        spans.append(Span(row, pages.lane(chunk.sequence), chunk.start, chunk.end))
        row += chunk.length
    return spans


def cache_rows(spans: Sequence[Span]) -> CacheRows:
    """The cache rows of all spans."""
    return CacheRows(
        lanes=np.repeat([span.lane for span in spans], [span.length for span in spans]),
        positions=np.concatenate([np.arange(span.start, span.end) for span in spans]),
    )


def token_ids(chunks: Sequence[Chunk]) -> list[int]:
    """The tokens of all rows."""
    return [token for chunk in chunks for token in chunk.token_ids]
