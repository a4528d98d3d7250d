"""The lockstep way: each sequence has a forward pass and a state of its own, and all meet at the experts."""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

from control_plane.engine.model.dense_model import MemorySize
from control_plane.engine.model.transformers_model.experts import ComputeExperts
from control_plane.engine.model.transformers_model.lockstep.cache import PAGE_SIZE, new_cache, working_copy
from control_plane.engine.model.transformers_model.lockstep.meeting import Pass, ask, run_together
from control_plane.engine.model.transformers_model.lockstep.state_size import state_size
from control_plane.engine.model.transformers_model.lockstep.states import SequenceStates
from control_plane.engine.model.transformers_model.model import TransformersModel
from control_plane.engine.model.transformers_model.tensor_views import to_numpy
from control_plane.engine.model.transformers_model.weights import TORCH_DTYPE
from control_plane.engine.scheduling.chunk import Chunk

_MEASURED = PAGE_SIZE, 8 * PAGE_SIZE - 1, 9 * PAGE_SIZE
"""Tokens of the states whose sizes are measured: see `state_size`."""


class LockstepModel(TransformersModel):
    """A model that keeps states of a sequence, as its family's own cache has them. It is a `DenseModel`.

    Its attention must be one of transformers' own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        experts: Mapping[str, int],
        dtype: str,
        threads: int,
        chunks_prompts: bool,
    ) -> None:
        """`experts` are the names of the experts' modules and the numbers of their layers, `dtype` that of
        the rows that are sent to them. `chunks_prompts` says whether a prompt can be computed in parts."""
        super().__init__(model, experts, TORCH_DTYPE[dtype], threads)
        self._chunks_prompts = chunks_prompts
        self._compute_experts: ComputeExperts = self._path.compute
        self._measure()

    @property
    def chunks_prompts(self) -> bool:
        return self._chunks_prompts

    @property
    def page_nbytes(self) -> int:
        return self._size.page_nbytes

    def new_memory(self, size: MemorySize) -> SequenceStates:
        return SequenceStates(self._size, self._new_cache, *size[:3])

    @torch.inference_mode()
    def hidden_states(self, batch: list[Chunk], memory: SequenceStates) -> NDArray[Any]:
        caches = [memory.before(chunk) for chunk in batch]
        passes, row = [], 0
        for chunk, cache in zip(batch, caches, strict=True):
            passes.append(Pass(row, chunk.length, partial(self._compute, chunk.token_ids, cache)))
            row += chunk.length
        with self._few_threads(row):
            hidden_states = run_together(passes, self._compute_experts)
        for chunk, cache in zip(batch, caches, strict=True):
            memory.commit(chunk, cache)
        return to_numpy(torch.cat(hidden_states))

    def _through(self, compute: ComputeExperts) -> ComputeExperts:
        self._compute_experts = compute
        return ask

    def _compute(self, tokens: list[int], cache: DynamicCache) -> torch.Tensor:
        """The final hidden states [n, H] of the next tokens of a sequence, whose state changes."""
        return self._forward(tokens, **{self._cache_argument: cache}, use_cache=True)

    def _new_cache(self) -> DynamicCache:
        return new_cache(self.model.config)

    @torch.inference_mode()
    def _measure(self) -> None:
        """Find the sizes of states."""
        tokens = [number % self.sizes.vocab_size for number in range(_MEASURED[-1])]
        cache, states = self._new_cache(), {}
        with self._routers.watching():
            for start, end in pairwise((0, *_MEASURED)):
                self._compute(tokens[start:end], cache)
                states[end] = working_copy(cache)
        self._size = state_size(states, self.sizes.context_length)
