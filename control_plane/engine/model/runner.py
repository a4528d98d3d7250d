"""Runs the dense model over a ragged batch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.experts.dispatcher import Dispatcher
from control_plane.engine.experts.prefetcher import Prefetcher
from control_plane.engine.model.dense_model import DenseModel
from control_plane.engine.model.logits import Logits
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.scheduling.interruption import Interruption
from control_plane.engine.state.kv_cache import KVCache, KVCacheShape
from control_plane.engine.state.stopwatch import StepPart, Stopwatch
from control_plane.partition.model.dense_config import DenseConfig
from functions.kernels.bfloat16 import as_f32

LOGITS_ROWS = 16
"""Prompt rows whose logits are computed at a time: a row of logits is as wide as the vocabulary."""

_DTYPE: Mapping[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "bf16": np.dtype(np.uint16)}


@dataclass(frozen=True)
class ModelRunner:
    """The dense model, and the KV cache of its attention."""

    model: DenseModel
    kv_cache: KVCache
    dispatcher: Dispatcher
    """The one that the model sends its rows through."""
    interruption: Interruption
    """The one that the dispatcher checks between layers."""
    stopwatch: Stopwatch
    prefetcher: Prefetcher | None
    """Learns whose rows a batch has, and when a step ends."""

    def run(self, batch: list[Chunk]) -> NDArray[Any]:
        """The final hidden states [N, hidden] of all rows: see `DenseModel.hidden_states`."""
        if self.prefetcher is not None:
            self.prefetcher.begin_step((chunk.sequence.tenant, chunk.length) for chunk in batch)
        hidden_states = self.model.hidden_states(batch, self.kv_cache)
        if self.prefetcher is not None:
            self.prefetcher.end_step()
        return hidden_states

    def next_logits(self, hidden_states: NDArray[Any], batch: list[Chunk]) -> Logits:
        """Logits [n, vocabulary] of the last rows of the n chunks that reach their sequence's end."""
        ends, end = [], 0
        for chunk in batch:
            end += chunk.length
            if chunk.is_last:
                ends.append(end - 1)
        logits = as_f32(self.model.logits(hidden_states[ends]))
        self.stopwatch.lap(StepPart.HEAD)
        return logits


def all_logits(model: DenseModel, hidden_states: NDArray[Any]) -> Iterator[Logits]:
    """Logits [at most LOGITS_ROWS, vocabulary] of rows [n, hidden], part by part to bound the memory."""
    for first in range(0, len(hidden_states), LOGITS_ROWS):
        yield as_f32(model.logits(hidden_states[first : first + LOGITS_ROWS]))


def kv_cache_shape(config: DenseConfig, dtype: str) -> KVCacheShape:
    """The shape of each token's keys and values; `dtype` is "f32" or "bf16"."""
    return KVCacheShape(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, _DTYPE[dtype])
