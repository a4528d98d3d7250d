"""Runs the model over one ragged batch."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from transformers import PreTrainedModel

from control_plane.engine.experts.prefetcher import Prefetcher
from control_plane.engine.model.attention import RaggedBatch
from control_plane.engine.model.kv_cache import KVCache, KVCacheShape
from control_plane.engine.model.layers import PackedLinear, StoredEmbedding
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.scheduling.interruption import Interruption
from control_plane.engine.stopwatch import StepPart, Stopwatch

LOGITS_ROWS = 16
"""Rows of prompts whose logits are computed at a time: each is as wide as the vocabulary."""
FEW_ROWS = 32
"""So few that what torch still computes is done before another thread has woken."""


@dataclass(frozen=True)
class ModelRunner:
    """The dense model and the cache that its attention reads."""

    model: PreTrainedModel
    kv_cache: KVCache
    interruption: Interruption
    """The one that the dispatcher checks between layers."""
    stopwatch: Stopwatch
    prefetcher: Prefetcher | None
    """Learns whose rows a batch has, and when a step ends."""
    threads: int = field(default_factory=torch.get_num_threads)

    @cached_property
    def is_packed(self) -> bool:
        """Whether all large products are the kernel's, which has threads of its own."""
        return isinstance(self.model.lm_head, PackedLinear)

    @property
    def stored_embedding_bytes(self) -> int:
        """Bytes of token embeddings that stay on disk instead of in memory."""
        embedding = self.model.model.embed_tokens
        return embedding.nbytes if isinstance(embedding, StoredEmbedding) else 0

    @torch.inference_mode()
    def run(self, batch: list[Chunk]) -> torch.Tensor:
        """The hidden states [N, hidden] of all rows of the chunks, one chunk's after the other's.

        Raises a `GatewayError` when an expert function stays away, `Interrupted` when the step is to give
        way; it can then be run again.
        """
        ragged_batch = RaggedBatch.of_chunks(batch, self.kv_cache)
        if self.prefetcher is not None:
            self.prefetcher.begin_step((chunk.sequence.tenant, chunk.length) for chunk in batch)
        token_ids = torch.tensor([token for chunk in batch for token in chunk.token_ids])
        few = self.is_packed and len(token_ids) <= FEW_ROWS
        torch.set_num_threads(1 if few else self.threads)
        try:
            output = self.model.model(
                input_ids=token_ids[None],
                position_ids=ragged_batch.positions[None],
                use_cache=False,
                ragged_batch=ragged_batch,
            )
        finally:
            torch.set_num_threads(self.threads)
        if self.prefetcher is not None:
            self.prefetcher.end_step()
        return output.last_hidden_state[0]

    @torch.inference_mode()
    def next_logits(self, hidden_states: torch.Tensor, batch: list[Chunk]) -> torch.Tensor:
        """Logits [n, vocabulary] of the last row of each of the n chunks that reach their sequence's end."""
        ends, end = [], 0
        for chunk in batch:
            end += chunk.length
            if chunk.is_last:
                ends.append(end - 1)
        logits: torch.Tensor = self.model.lm_head(hidden_states[ends])
        self.stopwatch.lap(StepPart.HEAD)
        return logits

    @torch.inference_mode()
    def all_logits(self, hidden_states: torch.Tensor) -> Iterator[torch.Tensor]:
        """Logits of all rows [n, hidden], in parts that fit into memory."""
        for rows in hidden_states.split(LOGITS_ROWS):
            yield self.model.lm_head(rows)


def kv_cache_shape(model: PreTrainedModel) -> KVCacheShape:
    """What the model keeps for each token."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return KVCacheShape(config.num_hidden_layers, config.num_key_value_heads, head_dim, model.dtype)
