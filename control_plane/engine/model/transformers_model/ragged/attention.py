"""The hook in transformers' attention interface: attention of a ragged batch, over the KV cache.

The model sees the rows of all sequences as one sequence [1, N]. Each row attends to the keys and values of
its own sequence, at their true positions. They attend in our kernel if each sees a window of the latest
tokens, as those of most families do, else in torch.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface

from control_plane.engine.kernels import Scores
from control_plane.engine.model.ragged_batch import Span, cache_rows, spans_of
from control_plane.engine.model.transformers_model.experts import INTERFACE
from control_plane.engine.model.transformers_model.ragged import mask
from control_plane.engine.model.transformers_model.ragged.mask import TokenMask
from control_plane.engine.model.transformers_model.tensor_views import to_numpy, to_torch
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.kv_cache import CacheRows, KVCache
from control_plane.engine.state.kv_cache_shape import KVLayer


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
        cache, dtype = self.kv_cache, self.kv_cache.shape.dtype
        query, key, value = (to_numpy(_like(rows, dtype)) for rows in (call.query, call.key, call.value))
        window = call.mask.window([(span.start, span.end) for span in self.spans])
        if window is not None:
            attended = cache.attend(layer, query, key, value, self.rows, call.scores(window))
            return to_torch(attended).to(call.query.dtype)
        cache.write(layer, self.rows, key, value)
        output = call.query.new_empty(*call.query.shape[:2], call.value.shape[2])
        for span in self.spans:
            past = cache.read(layer, span.lane, span.end)
            keys, values = (to_torch(states).to(output.dtype) for states in past)
            seen = call.mask.seen(span.start, span.end)
            output[span.rows] = _attention(call, call.query[span.rows], keys, values, seen)
        return output


@dataclass
class RaggedAttention:
    """Takes the place of the attention functions of a model's modules."""

    layers: list[KVLayer] = field(default_factory=list)
    """What the cache has to keep of a token."""
    batch: RaggedBatch | None = None
    """The batch that is computed now. Without one, calls add to `layers`, and give zeros."""
    _layers: dict[nn.Module, int] = field(default_factory=dict)
    """The layer of the cache that each module uses. Modules that take over others' keys share theirs."""
    _keys: list[torch.Tensor] = field(default_factory=list)
    """The keys of `layers`, while they are found."""

    def __call__(self, module: nn.Module, call: AttentionCall) -> torch.Tensor:
        """Attention of all rows [N, heads, value_size]."""
        if self.batch is None:
            self._add(module, call)
            return call.query.new_zeros(*call.query.shape[:2], call.value.shape[2])
        return self.batch.attend(self._layers[module], call)

    def found(self) -> tuple[KVLayer, ...]:
        """The layers that the forward pass without a batch has found."""
        self._keys.clear()
        return tuple(self.layers)

    def _add(self, module: nn.Module, call: AttentionCall) -> None:
        if module in self._layers:
            raise NotImplementedError(f"{type(module).__name__} attends twice in a pass")
        for number, keys in enumerate(self._keys):
            if keys.data_ptr() == call.key.data_ptr() and keys.shape == call.key.shape:
                self._layers[module] = number
                return
        self._layers[module] = len(self.layers)
        _, heads, key_size = call.key.shape
        self.layers.append(KVLayer(heads, key_size, call.value.shape[2]))
        self._keys.append(call.key)


def attach_attention(model: nn.Module) -> RaggedAttention:
    """Have the model's modules attend by the object that is returned."""
    attention = RaggedAttention()
    # Which of them attend shows only when they do.
    modules: Any = model.modules()
    for module in modules:
        module.ragged_attention = attention
    return attention


def register() -> None:
    """Make our attention known to transformers, by the name `INTERFACE`. Calling it again is harmless."""
    mask.register()
    AttentionInterface.register(INTERFACE, _attend)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: TokenMask | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """transformers' form: [1, heads, N, size] to [1, N, heads, size], and no attention weights."""
    if attention_mask is None:
        attention_mask = mask.causal(sliding_window)
    if not isinstance(attention_mask, TokenMask):
        raise NotImplementedError(f"{type(module).__name__} changes the mask")
    rows, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    call = AttentionCall(
        rows,
        keys,
        values,
        attention_mask,
        query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap,
        s_aux,
    )
    return module.ragged_attention(module, call)[None], None


def _like(rows: torch.Tensor, dtype: np.dtype[Any]) -> torch.Tensor:
    """Rows in the dtype of the cache."""
    return rows.to(torch.bfloat16 if dtype == np.uint16 else torch.float32)


def _attention(
    call: AttentionCall,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: torch.Tensor,
) -> torch.Tensor:
    """Attention of rows [n, heads, d] to keys and values [kv_heads, m, size] where `seen` [n, m] is true."""
    rows, heads, size = query.shape
    shared = heads // len(keys)
    if not call.softcap and call.sinks is None:
        output = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys[None],
            values[None],
            seen,
            scale=call.scaling,
            enable_gqa=shared > 1,
        )
        return output[0].transpose(0, 1)
    # Heads that share keys are rows of one product, so that the keys are not repeated for each.
    grouped = query.transpose(0, 1).reshape(len(keys), shared * rows, size)
    scores = (grouped @ keys.transpose(1, 2)).float().view(heads, rows, -1) * call.scaling
    if call.softcap:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    if call.sinks is not None:
        sinks = call.sinks.float().reshape(-1, 1, 1).expand(-1, rows, 1)
        scores = torch.cat([scores, sinks], dim=2)
    weights = scores.softmax(dim=2)[..., : keys.shape[1]].to(values.dtype)
    output = weights.reshape(len(keys), shared * rows, -1) @ values
    return output.view(heads, rows, -1).transpose(0, 1)
