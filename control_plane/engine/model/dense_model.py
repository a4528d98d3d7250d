"""What the engine needs of the dense part of a model, whatever computes it. All arrays are NumPy's.

Activations are float32, or the bits of bfloat16 as uint16.
"""

from typing import Any, Protocol

from numpy.typing import NDArray

from control_plane.engine.experts.dispatcher import Dispatcher
from control_plane.engine.experts.predictor import RouterWeights
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.kv_cache import KVCache
from control_plane.partition.model.dense_config import DenseConfig


class DenseModel(Protocol):
    """The dense part of a model: all but the routed experts, which it reaches through a dispatcher."""

    config: DenseConfig

    @property
    def stored_embedding_bytes(self) -> int:
        """Bytes of token embeddings that stay on disk instead of in memory."""

    @property
    def has_masks(self) -> bool:
        """Whether a step holds a mask of attention [rows, context], as torch needs it."""

    def attach(self, dispatcher: Dispatcher) -> None:
        """Have layers send their rows through the dispatcher. To be called once, before anything runs.

        This is a step after loading because what the dispatcher prefetches with is made from `router`s.
        """

    def router(self, layer: int) -> RouterWeights:
        """The router of a layer with experts."""

    def hidden_states(self, batch: list[Chunk], kv_cache: KVCache) -> NDArray[Any]:
        """The final hidden states [N, H] of all rows, in the order of the chunks.

        Raises `RowsFailed` if an expert function cannot be called, and `Interrupted` if the step gives
        way to a newcomer. The same batch can be computed again after either.
        """

    def logits(self, hidden_states: NDArray[Any]) -> NDArray[Any]:
        """The logits [n, vocabulary] of final hidden states [n, H]."""
