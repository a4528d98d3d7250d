"""Runs the dense model over a ragged batch."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from transformers import PreTrainedModel

from control_plane.engine.experts.dispatcher import Dispatcher
from control_plane.engine.experts.prefetcher import Prefetcher
from control_plane.engine.model.attention import RaggedBatch
from control_plane.engine.model.layers import PackedLinear
from control_plane.engine.model.stored_embedding import StoredEmbedding
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.scheduling.interruption import Interruption
from control_plane.engine.state.kv_cache import KVCache, KVCacheShape
from control_plane.engine.state.stopwatch import StepPart, Stopwatch

LOGITS_ROWS = 16
"""Prompt rows whose logits are computed at a time: a row of logits is as wide as the vocabulary."""
FEW_ROWS = 32
"""Up to this many rows, torch finishes its small products before a second thread has woken up."""


@dataclass(frozen=True)
class ModelRunner:
    """The dense model, and the KV cache of its attention."""

    model: PreTrainedModel
    kv_cache: KVCache
    dispatcher: Dispatcher
    """The one that the model sends its rows through."""
    interruption: Interruption
    """The one that the dispatcher checks between layers."""
    stopwatch: Stopwatch
    prefetcher: Prefetcher | None
    """Learns whose rows a batch has, and when a step ends."""
    threads: int = field(default_factory=torch.get_num_threads)
    """torch's threads for batches of many rows."""

    @cached_property
    def is_packed(self) -> bool:
        """Whether our kernel, which has its own threads, computes all large products."""
        return isinstance(self.model.lm_head, PackedLinear)

    @property
    def stored_embedding_bytes(self) -> int:
        """Bytes of token embeddings that stay on disk instead of in memory."""
        embedding = self.model.model.embed_tokens
        return embedding.nbytes if isinstance(embedding, StoredEmbedding) else 0

    @torch.inference_mode()
    def run(self, batch: list[Chunk]) -> torch.Tensor:
        """The final hidden states [N, hidden] of all rows, in the order of the chunks.

        Raises `RowsFailed` if an expert function cannot be called, and `Interrupted` if the step gives
        way to a newcomer. The same batch can be run again after either.
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
        hidden_states: torch.Tensor = output.last_hidden_state[0]
        return hidden_states

    @torch.inference_mode()
    def next_logits(self, hidden_states: torch.Tensor, batch: list[Chunk]) -> torch.Tensor:
        """Logits [n, vocabulary] of the last rows of the n chunks that reach their sequence's end."""
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
        """Logits [at most LOGITS_ROWS, vocabulary] of rows [n, hidden], part by part to bound the memory."""
        for rows in torch.split(hidden_states, LOGITS_ROWS):
            yield self.model.lm_head(rows)


def kv_cache_shape(model: PreTrainedModel) -> KVCacheShape:
    """The shape of the keys and values that the model needs for each token."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return KVCacheShape(config.num_hidden_layers, config.num_key_value_heads, head_dim, model.dtype)
