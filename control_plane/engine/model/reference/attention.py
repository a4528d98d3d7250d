"""Attention over a ragged batch: the rows of several sequences in one flat tensor, each with its own past.

A family's attention module keeps its projections and norms. All families share the code that follows them:
rows that are alone in their chunk (decoding) attend in one kernel call, chunks of several rows (prefill) in
torch, one after the other.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.models.mixtral.modeling_mixtral import MixtralAttention
from transformers.models.olmoe.modeling_olmoe import OlmoeAttention
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeAttention
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeAttention

from control_plane.engine.model.ragged_batch import Span, cache_rows, spans_of
from control_plane.engine.model.reference.layers import apply_all
from control_plane.engine.model.reference.tensor_views import to_numpy, to_torch
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.kv_cache import CacheRows, KVCache

NO_MASK = "faasmoe_ragged"
"""The name of our attention in transformers, registered so that it makes no mask."""

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines [N, head_dim] of the rotary embedding of each row's position."""


@dataclass(frozen=True)
class RaggedBatch:
    """The chunks of a step, whose rows lie one after the other, and the cache that holds their past."""

    kv_cache: KVCache
    spans: list[Span]
    rows: CacheRows
    """Cache rows of the batch. Rows attend in the kernel if they are alone in their chunk."""
    _masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of_chunks(cls, chunks: list[Chunk], kv_cache: KVCache) -> "RaggedBatch":
        """The batch of these chunks. Each sequence must hold memory for its chunk."""
        spans = spans_of(chunks, kv_cache.pages)
        return cls(kv_cache, spans, cache_rows(spans))

    @property
    def positions(self) -> torch.Tensor:
        """[N]: each row's position in its sequence."""
        return torch.from_numpy(self.rows.positions)

    def mask(self, span: Span, window: int | None) -> torch.Tensor:
        """[rows, end]: True if a row sees a position. Cached, because all layers of a step share it.

        With a window, a row sees that many positions, its own included.
        """
        key = (span.start, span.end, window)
        if key not in self._masks:
            rows = torch.arange(span.start, span.end)[:, None]
            columns = torch.arange(span.end)[None, :]
            mask = columns <= rows
            self._masks[key] = mask if window is None else mask & (columns > rows - window)
        return self._masks[key]


class RaggedAttention(nn.Module):
    """A mixin for a family's attention module, whose projections and norms it uses."""

    sliding_window: int | None = None

    def project(self: Any, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of rows [N, hidden]: each [N, heads * head_dim]."""
        query, key, value = apply_all((self.q_proj, self.k_proj, self.v_proj), rows)
        return query, key, value

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        position_embeddings: Rotation,
        ragged_batch: RaggedBatch,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        """All chunks' rows [1, N, hidden] to [1, N, hidden]. Returns no attention weights."""
        projected = self.project(hidden_states[0])
        query, key, value = (states.view(len(states), -1, self.head_dim) for states in projected)
        cosine, sine = position_embeddings
        output = self._attend(query, key, value, (cosine[0], sine[0]), ragged_batch)
        return self.o_proj(output.flatten(1))[None], None

    def _attend(
        self: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotation: Rotation,
        batch: RaggedBatch,
    ) -> torch.Tensor:
        """Causal attention of each chunk over its own sequence: [N, heads, head_dim]."""
        cache, window = batch.kv_cache, self.sliding_window
        rows = to_numpy(query), to_numpy(key), to_numpy(value)
        angles = to_numpy(rotation[0]), to_numpy(rotation[1])
        attended = to_torch(cache.attend(self.layer_idx, *rows, angles, batch.rows, self.scaling, window))
        if len(attended) == len(query):
            # Every row decodes: the usual step of a batch without prompts.
            return attended
        output = torch.empty_like(query)
        output[batch.rows.attending] = attended
        for span in batch.spans:
            if span.length > 1:
                keys, values = map(to_torch, cache.read(self.layer_idx, span.lane, span.end))
                rotated = _rotated(query[span.rows], rotation[0][span.rows], rotation[1][span.rows])
                output[span.rows] = _prefill(rotated, keys, values, self.scaling, batch.mask(span, window))
        return output


class RaggedQwen2MoeAttention(RaggedAttention, Qwen2MoeAttention):
    """Qwen2-MoE's attention, which needs no change."""


class RaggedMixtralAttention(RaggedAttention, MixtralAttention):
    """Mixtral's attention, which may have a sliding window."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.sliding_window = config.sliding_window


class RaggedQwen3MoeAttention(RaggedAttention, Qwen3MoeAttention):
    """Qwen3-MoE's attention, which normalises the queries and keys of each head."""

    def project(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = super().project(rows)
        heads = (len(rows), -1, self.head_dim)
        return self.q_norm(query.view(heads)), self.k_norm(key.view(heads)), value


class RaggedOlmoeAttention(RaggedAttention, OlmoeAttention):
    """OLMoE's attention, which normalises queries and keys over all heads, and may clip them."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.sliding_window = getattr(config, "sliding_window", None)

    def project(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = super().project(rows)
        query, key = self.q_norm(query), self.k_norm(key)
        most = self.config.clip_qkv
        if most is not None:
            query, key, value = (states.clamp(-most, most) for states in (query, key, value))
        return query, key, value


def register() -> None:
    """Make `attn_implementation=NO_MASK` known to transformers. Calling it again is harmless."""
    AttentionMaskInterface.register(NO_MASK, _nothing)
    # transformers accepts only names that also have an attention function. Our modules never call it.
    AttentionInterface.register(NO_MASK, _nothing)


def _nothing(*_: object, **__: object) -> None:
    return None


def _rotated(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Heads [n, heads, d], rotated by their rows' cosines and sines [n, d]."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine[:, None] + torch.cat((-second, first), dim=-1) * sine[:, None]


def _prefill(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, mask: torch.Tensor
) -> torch.Tensor:
    """Attention of rows [n, heads, d] to keys and values [kv_heads, m, d], their own included."""
    output = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != keys.shape[0],
    )
    return output[0].transpose(0, 1)
