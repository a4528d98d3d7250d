"""What the engine needs of the dense part of a model, whatever computes it. All arrays are NumPy's.

Activations are float32, or the bits of bfloat16 as uint16.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.experts.dispatcher import Dispatcher
from control_plane.engine.experts.predictor import RouterWeights
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.sequence_memory import SequenceMemory

ACTIVATIONS: Mapping[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "bf16": np.dtype(np.uint16)}
"""The arrays that hold a manifest's `dtype`."""


class ModelSizes(NamedTuple):
    """What determines the memory of steps, and the longest sequence."""

    vocab_size: int
    context_length: int
    """Tokens of the longest sequence."""
    dense_width: int
    """The largest width of a row in a layer of the dense part."""


class MemorySize(NamedTuple):
    """The size of the memory for sequences."""

    num_pages: int
    num_lanes: int
    """The most sequences that hold memory."""
    max_length: int
    """Tokens of the longest sequence."""
    threads: int
    """The most threads of attention."""


class DenseModel(Protocol):
    """The dense part of a model: all but the routed experts, which it reaches through a dispatcher."""

    @property
    def sizes(self) -> ModelSizes:
        """The sizes of the model."""

    @property
    def stored_embedding_bytes(self) -> int:
        """Bytes of token embeddings that stay on disk instead of in memory."""

    @property
    def has_masks(self) -> bool:
        """Whether a step holds a mask of attention [rows, context], as torch needs it."""

    @property
    def chunks_prompts(self) -> bool:
        """Whether the parts of a prompt, one after the other, give what the whole prompt gives."""

    @property
    def page_nbytes(self) -> int:
        """Bytes of a page of `new_memory`."""

    def new_memory(self, size: MemorySize) -> SequenceMemory:
        """Memory for sequences of this model, which `hidden_states` needs.

        Raises `OSError` or `OverflowError` if the machine has not as many addresses.
        """

    def attach(self, dispatcher: Dispatcher) -> None:
        """Have layers send their rows through the dispatcher. To be called once, before anything runs.

        This is a step after loading because what the dispatcher prefetches with is made from `router`s.
        """

    def router(self, layer: int) -> RouterWeights | None:
        """The router of a layer with experts; None if it is not a matrix behind a norm."""

    def hidden_states(self, batch: list[Chunk], memory: Any) -> NDArray[Any]:
        """The final hidden states [N, H] of all rows, in the order of the chunks.

        `memory` is what `new_memory` made. Raises `RowsFailed` if an expert function cannot be called, and
        `Interrupted` if the step gives way to a newcomer. The same batch can be computed again after either.
        """

    def logits(self, hidden_states: NDArray[Any]) -> NDArray[Any]:
        """The logits [n, vocabulary] of final hidden states [n, H]."""
