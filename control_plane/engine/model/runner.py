"""Runs the dense model over a ragged batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from control_plane.engine.experts.dispatcher import Dispatcher
from control_plane.engine.experts.prefetcher import Prefetcher
from control_plane.engine.model.dense_model import DenseModel
from control_plane.engine.model.logits import Logits
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.scheduling.interruption import Interruption
from control_plane.engine.state.sequence_memory import SequenceMemory
from control_plane.engine.state.stopwatch import StepPart, Stopwatch
from functions.kernels.activations import as_f32

LOGITS_ROWS = 16
"""Prompt rows whose logits are computed at a time: a row of logits is as wide as the vocabulary."""


@dataclass(frozen=True)
class ModelRunner:
    """The dense model, and the memory of its sequences."""

    model: DenseModel
    kv_cache: SequenceMemory
    """What the model's `new_memory` made."""
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
