"""Attention over a ragged batch: the rows of several sequences in one flat tensor, each with its own past.

Registered with transformers under one name, it serves every model family: projections, norms and rotary
embedding stay the family's own, only the step from queries, keys and values to the output is ours.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from control_plane.engine.kv_cache import CacheRows, KVCache
from control_plane.engine.scheduler import Chunk

RAGGED_ATTENTION = "faasmoe_ragged"


@dataclass(frozen=True)
class Span:
    """Where one chunk's rows lie in the flat batch, and its sequence's past in the cache."""

    first_row: int
    lane: int
    start: int
    end: int

    @property
    def length(self) -> int:
        """How many rows."""
        return self.end - self.start

    @property
    def rows(self) -> slice:
        """The chunk's rows."""
        return slice(self.first_row, self.first_row + self.length)


@dataclass(frozen=True)
class RaggedBatch:
    """The chunks whose rows lie one after the other in the flat batch, and the cache of their past."""

    kv_cache: KVCache
    spans: list[Span]
    rows: CacheRows
    """The rows that are alone in their chunk attend by themselves."""
    _masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of_chunks(cls, chunks: list[Chunk], kv_cache: KVCache) -> "RaggedBatch":
        """The batch of these chunks; each sequence must have its memory."""
        spans = []
        row = 0
        for chunk in chunks:
            spans.append(Span(row, kv_cache.pages.lane(chunk.sequence), chunk.start, chunk.end))
            row += chunk.length
        rows = CacheRows(
            lanes=np.repeat([span.lane for span in spans], [span.length for span in spans]),
            positions=np.concatenate([np.arange(span.start, span.end) for span in spans]),
            attending=np.array([span.first_row for span in spans if span.length == 1], np.int64),
        )
        return cls(kv_cache, spans, rows)

    @property
    def positions(self) -> torch.Tensor:
        """[N]: of each row in its sequence."""
        return torch.from_numpy(self.rows.positions)

    def mask(self, span: Span, window: int | None) -> torch.Tensor:
        """[rows, end]: True where a row may look at a position. The layers of a step share it."""
        key = (span.start, span.end, window)
        if key not in self._masks:
            rows = torch.arange(span.start, span.end)[:, None]
            columns = torch.arange(span.end)[None, :]
            mask = columns <= rows
            self._masks[key] = mask if window is None else mask & (columns > rows - window)
        return self._masks[key]


def register() -> None:
    """Make `attn_implementation=RAGGED_ATTENTION` known to transformers; it needs no mask from it."""
    AttentionInterface.register(RAGGED_ATTENTION, ragged_attention)
    AttentionMaskInterface.register(RAGGED_ATTENTION, _no_mask)


def ragged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    ragged_batch: RaggedBatch,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each chunk over its own sequence, whose new keys and values are kept first.

    query is [1, heads, N, head_dim], key and value are [1, kv_heads, N, head_dim] over the N rows of all
    chunks. Returns [1, N, heads, head_dim], as transformers expects, and no attention weights.
    """
    window = sliding_window or getattr(module, "sliding_window", None)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    cache, rows = ragged_batch.kv_cache, ragged_batch.rows
    query = query[0]
    row_query, row_key, row_value = (states.transpose(0, 1) for states in (query, key[0], value[0]))
    attended = cache.attend(layer, row_query, row_key, row_value, rows, scaling, window)
    if len(attended) == len(row_query):
        return attended[None], None
    output = torch.empty_like(row_query, memory_format=torch.contiguous_format)
    output[rows.attending] = attended
    for span in ragged_batch.spans:
        if span.length > 1:
            keys, values = cache.read(layer, span.lane, span.end)
            mask = ragged_batch.mask(span, window)
            output[span.rows] = _prefill(query[:, span.rows], keys, values, scaling, mask)
    return output[None], None


def _prefill(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, mask: torch.Tensor
) -> torch.Tensor:
    """Rows [heads, n, d] over their past and themselves [kv_heads, m, d]: [n, heads, d]."""
    output = F.scaled_dot_product_attention(
        query[None],
        keys[None],
        values[None],
        attn_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[0] != keys.shape[0],
    )
    return output[0].transpose(0, 1)


def _no_mask(*_: object, **__: object) -> None:
    return None
