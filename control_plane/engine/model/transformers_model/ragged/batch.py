"""The attention of a ragged batch, over the KV cache."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from control_plane.engine.kernels import Scores
from control_plane.engine.model.ragged_batch import Span, cache_rows, spans_of
from control_plane.engine.model.transformers_model.ragged.latents import Latents
from control_plane.engine.model.transformers_model.ragged.mask import TokenMask
from control_plane.engine.model.transformers_model.tensor_views import to_numpy, to_torch
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.kv_cache import CacheRows, KVCache

EXPANDING_PAYS = 64
"""With as many rows of a sequence, keys and values are computed from latents."""
EXPANDED_NBYTES = 32 << 20
"""Most memory of keys and values that are computed from latents at once, unless one head's take more."""


@dataclass(frozen=True)
class AttentionCall:
    """What a family's module asks for. Rows are [N, heads, size]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: TokenMask
    scaling: float
    softcap: float | None
    """Scores become softcap * tanh(score / softcap)."""
    sinks: torch.Tensor | None
    """[heads]: a score in each head's softmax that belongs to no token."""
    latents: Latents | None
    """With them, key and value are latents, of one head, and the value is a part of the key."""
    bias: torch.Tensor | None = None
    """[heads, N, tokens]: is added to the scores of each row's own sequence."""

    @property
    def value_size(self) -> int:
        """Of the output."""
        return self.latents.value_size if self.latents else self.value.shape[2]

    @property
    def is_fused(self) -> bool:
        """Whether torch computes it without keeping the scores."""
        return not self.softcap and self.sinks is None and self.bias is None

    def scores(self, window: int) -> Scores:
        """What the kernel computes, for rows that see such a window."""
        sinks = None if self.sinks is None else to_numpy(self.sinks.float())
        return Scores(self.scaling, window, self.softcap, sinks)


@dataclass
class RaggedBatch:
    """The chunks of a step, whose rows lie one after the other, and the cache that holds their past."""

    kv_cache: KVCache
    spans: list[Span]
    rows: CacheRows
    """Cache rows of the batch."""

    @classmethod
    def of_chunks(cls, chunks: list[Chunk], kv_cache: KVCache) -> "RaggedBatch":
        """The batch of these chunks. Each sequence must hold memory for its chunk."""
        spans = spans_of(chunks, kv_cache.pages)
        return cls(kv_cache, spans, cache_rows(spans))

    def attend(self, layer: int, call: AttentionCall) -> torch.Tensor:
        """Attention of all rows [N, heads, value_size], whose keys and values are stored."""
        output = call.query.new_empty(*call.query.shape[:2], call.value_size)
        ours = self._for_kernel(call)
        window = call.mask.window([(span.start, span.end) for span in ours]) if ours else None
        if window is None:
            ours = []
        else:
            rows = self._rows_of(ours)
            output[rows] = self._attend_in_kernel(layer, call, rows, window)
        for span in self.spans:
            if span not in ours:
                self._attend_in_torch(layer, call, span, output[span.rows])
        return output

    def _for_kernel(self, call: AttentionCall) -> list[Span]:
        """Chunks whose rows attend in our kernel, if they see a window of tokens."""
        if call.bias is not None:
            return []
        # Of many rows, torch's fused attention is faster than our kernel.
        many = EXPANDING_PAYS if call.latents else 2
        return [span for span in self.spans if span.length < many or not call.is_fused]

    def _attend_in_kernel(
        self, layer: int, call: AttentionCall, rows: slice | NDArray[np.int64], window: int
    ) -> torch.Tensor:
        """Attention of some rows [n, heads, value_size], which see such a window."""
        query = call.latents.queries(call.query[rows]) if call.latents else call.query[rows]
        key, value = self._states(call, rows)
        places, scores = self.rows.part(rows), call.scores(window)
        attended = self.kv_cache.attend(layer, self._stored(query), key, value, places, scores)
        output = to_torch(attended).to(call.query.dtype)
        return call.latents.outputs(output) if call.latents else output

    def _attend_in_torch(self, layer: int, call: AttentionCall, span: Span, output: torch.Tensor) -> None:
        """Write the attention of a chunk's rows to `output` [n, heads, value_size]."""
        cache = self.kv_cache
        cache.write(layer, self.rows.part(span.rows), *self._states(call, span.rows))
        past = cache.read(layer, span.lane, span.end)
        keys, values = (to_torch(states).to(output.dtype) for states in past)
        query, seen = call.query[span.rows], call.mask.seen(span.start, span.end)
        if call.latents is None:
            bias = None if call.bias is None else call.bias[:, span.rows, : span.end]
            output[:] = _attention(call, query, keys, values, seen, bias)
            return
        for heads in _groups(call, span.end):
            expanded = call.latents.expanded(keys[0], heads)
            output[:, heads] = _attention(call, query[:, heads], *expanded, seen, None)

    def _states(
        self, call: AttentionCall, rows: slice | NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """What the cache keeps of some rows."""
        value = None if call.latents else self._stored(call.value[rows])
        return self._stored(call.key[rows]), value

    def _stored(self, rows: torch.Tensor) -> NDArray[Any]:
        """Rows in the dtype of the cache."""
        is_bf16 = self.kv_cache.shape.dtype == np.uint16
        return to_numpy(rows.to(torch.bfloat16 if is_bf16 else torch.float32))

    def _rows_of(self, spans: list[Span]) -> slice | NDArray[np.int64]:
        """The numbers of these chunks' rows in the batch."""
        if len(spans) == len(self.spans):
            return slice(None)
        return np.concatenate([np.arange(span.rows.start, span.rows.stop) for span in spans])


def _groups(call: AttentionCall, tokens: int) -> Iterator[slice]:
    """Heads whose keys and values of so many tokens are computed from latents at once."""
    heads, size = call.query.shape[1:]
    nbytes = tokens * (size + call.value_size) * call.query.itemsize
    at_once = max(1, EXPANDED_NBYTES // nbytes) if call.is_fused else heads
    for start in range(0, heads, at_once):
        yield slice(start, start + at_once)


def _attention(
    call: AttentionCall,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of rows [n, heads, d] to keys and values [kv_heads, m, size] where `seen` [n, m] is true.

    `bias` [heads, n, m] is the rows' part of the call's.
    """
    rows, heads, size = query.shape
    shared = heads // len(keys)
    if call.is_fused:
        # Only for one size is it fused.
        largest = max(size, values.shape[2])
        padded_query, padded_keys, padded_values = (
            F.pad(states, (0, largest - states.shape[2]))[None]
            for states in (query.transpose(0, 1), keys, values)
        )
        output = F.scaled_dot_product_attention(
            padded_query,
            padded_keys,
            padded_values,
            attn_mask=seen,
            scale=call.scaling,
            enable_gqa=shared > 1,
        )
        return output[0, ..., : values.shape[2]].transpose(0, 1)
    # Heads that share keys are rows of one product, so that the keys are not repeated for each.
    grouped = query.transpose(0, 1).reshape(len(keys), shared * rows, size)
    scores = (grouped @ keys.transpose(1, 2)).float().view(heads, rows, -1) * call.scaling
    if call.softcap:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~seen, -torch.inf)
    if call.sinks is not None:
        sinks = call.sinks.float().reshape(-1, 1, 1).expand(-1, rows, 1)
        scores = torch.cat([scores, sinks], dim=2)
    weights = scores.softmax(dim=2)[..., : keys.shape[1]].to(values.dtype)
    output = weights.reshape(len(keys), shared * rows, -1) @ values
    return output.view(heads, rows, -1).transpose(0, 1)
