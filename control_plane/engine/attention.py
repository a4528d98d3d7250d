"""Attention over a ragged batch: the rows of several sequences in one flat tensor, each with its own past.

Registered with transformers under one name, it serves every model family: projections, norms and rotary
embedding stay the family's own, only the step from queries, keys and values to the output is ours.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from control_plane.engine.kv_cache import KVCache
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
    def rows(self) -> slice:
        """The chunk's rows."""
        return slice(self.first_row, self.first_row + self.end - self.start)


@dataclass(frozen=True)
class RaggedBatch:
    """The chunks whose rows lie one after the other in the flat batch, and the cache of their past."""

    kv_cache: KVCache
    spans: list[Span]
    positions: torch.Tensor
    """[N]: of each row in its sequence."""
    lanes: torch.Tensor
    """[N]: where each row's sequence has its past."""
    _masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of_chunks(cls, chunks: list[Chunk], kv_cache: KVCache) -> "RaggedBatch":
        """The batch of these chunks; each sequence must have its memory."""
        spans = []
        row = 0
        for chunk in chunks:
            spans.append(Span(row, kv_cache.pages.lane(chunk.sequence), chunk.start, chunk.end))
            row += chunk.length
        positions = [position for span in spans for position in range(span.start, span.end)]
        lanes = [span.lane for span in spans for _ in range(span.start, span.end)]
        return cls(kv_cache, spans, torch.tensor(positions), torch.tensor(lanes))

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
    cache = ragged_batch.kv_cache
    cache.write(
        layer, ragged_batch.lanes, ragged_batch.positions, key[0].transpose(0, 1), value[0].transpose(0, 1)
    )
    query = query[0]
    output = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
    for span in ragged_batch.spans:
        rows = span.rows
        keys, values = cache.read(layer, span.lane, span.end)
        if span.end - span.start == 1:
            output[rows.start] = _decode(query[:, rows.start], keys, values, scaling, window)
        else:
            mask = ragged_batch.mask(span, window)
            output[rows] = _prefill(query[:, rows], keys, values, scaling, mask)
    return output[None], None


def _decode(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, window: int | None
) -> torch.Tensor:
    """One row [heads, d] over the past [kv_heads, n, d] that it ends: [heads, d].

    The heads that share keys are rows of one product: so each key is read once.
    """
    if window is not None:
        keys, values = keys[:, -window:], values[:, -window:]
    query = query.view(keys.shape[0], -1, query.shape[-1])
    if query.shape[1] == 1:
        # Two products take a seventh of the time of torch's fused attention for one row of bf16. Scores are
        # summed in float32, which torch does four times as fast as in bf16, and keys come first, as they lie.
        scores = torch.bmm(keys.float(), query.float().transpose(1, 2)).transpose(1, 2)
        weights = scores.mul_(scaling).softmax(dim=-1).to(query.dtype)
        return torch.bmm(weights, values).flatten(0, 1)
    return F.scaled_dot_product_attention(query[None], keys[None], values[None], scale=scaling)[0].flatten(
        0, 1
    )


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
