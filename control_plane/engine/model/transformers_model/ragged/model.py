"""The ragged way: one forward pass over the rows of all sequences, with attention over the KV cache."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from control_plane.engine.kernels import DenseKernel
from control_plane.engine.model.dense_model import ACTIVATIONS, MemorySize
from control_plane.engine.model.ragged_batch import token_ids
from control_plane.engine.model.transformers_model.model import TransformersModel
from control_plane.engine.model.transformers_model.ragged.attention import attach_attention
from control_plane.engine.model.transformers_model.ragged.batch import RaggedBatch
from control_plane.engine.model.transformers_model.ragged.latents import attach_latents
from control_plane.engine.model.transformers_model.ragged.mixers import Mixers
from control_plane.engine.model.transformers_model.ragged.state_cache import StateCache, keeps_states
from control_plane.engine.model.transformers_model.ragged.state_search import StateSearch
from control_plane.engine.model.transformers_model.tensor_views import to_numpy
from control_plane.engine.model.transformers_model.weights import TORCH_DTYPE
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.hybrid_cache import HybridCache
from control_plane.engine.state.kv_cache import KVCache
from control_plane.engine.state.kv_cache_shape import KVCacheShape


class RaggedModel(TransformersModel):
    """A model that keeps keys and values of a sequence, and perhaps states. It is a `DenseModel`.

    Its attention must be `INTERFACE`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        experts: Mapping[str, int],
        dtype: str,
        threads: int,
        kernel: DenseKernel,
    ) -> None:
        """`experts` are the names of the experts' modules and the numbers of their layers, `dtype` that of
        keys, values and rows. Raises what the family's modules raise if they cannot attend this way."""
        super().__init__(model, experts, TORCH_DTYPE[dtype], threads)
        self._kernel = kernel
        self._attention = attach_attention(model)
        with torch.inference_mode():
            attach_latents(model, TORCH_DTYPE[dtype])
        self._mixers = self._find()
        self._shape = KVCacheShape(self._attention.found(), ACTIVATIONS[dtype])

    @property
    def chunks_prompts(self) -> bool:
        return True

    @property
    def page_nbytes(self) -> int:
        return self._shape.page_nbytes

    def new_memory(self, size: MemorySize) -> KVCache:
        if self._mixers is None:
            return KVCache(self._shape, *size[:3], self._kernel, size.threads)
        return HybridCache(self._shape, *size[:3], self._kernel, size.threads, self._mixers.shapes)

    @torch.inference_mode()
    def hidden_states(self, batch: list[Chunk], memory: KVCache) -> NDArray[Any]:
        ragged_batch = self._attention.batch = RaggedBatch.of_chunks(batch, memory)
        try:
            with self._few_threads(len(ragged_batch.rows.positions)), self._mixing(ragged_batch):
                cache = self._mixers.cache if self._mixers else None
                return self._compute(token_ids(batch), torch.from_numpy(ragged_batch.rows.positions), cache)
        finally:
            self._attention.batch = None

    @torch.inference_mode()
    def _find(self) -> Mixers | None:
        """See in a forward pass what the model keeps of a sequence."""
        search = StateSearch() if keeps_states(self.model.config) else None
        with self._routers.watching(), nullcontext() if search is None else search.watching(self.model):
            self._compute([0], torch.zeros(1, dtype=torch.int64), search)
        return None if search is None else Mixers(search, self._kernel, self._threads)

    def _mixing(self, batch: RaggedBatch) -> AbstractContextManager[None]:
        """Until the context ends, mixers compute the batch's rows."""
        if self._mixers is None or not isinstance(batch.kv_cache, HybridCache):
            return nullcontext()
        return self._mixers.step(batch.spans, batch.kv_cache.states)

    def _compute(self, tokens: list[int], positions: torch.Tensor, cache: StateCache | None) -> NDArray[Any]:
        """The final hidden states [N, H] of rows at these positions [N]."""
        # A mask, though of ones alone: without one, transformers takes such positions for packed sequences.
        options: dict[str, Any] = {"attention_mask": torch.ones(1, len(tokens), dtype=torch.int64)}
        if "position_ids" in self._arguments:
            options["position_ids"] = positions[None]
        if cache is not None:
            cache.positions = positions
            options[self._cache_argument] = cache
        return to_numpy(self._forward(tokens, use_cache=False, **options))
