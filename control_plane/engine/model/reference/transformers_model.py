"""The dense part of a model in transformers' modules: for families without layer programs, and the reference
for those with."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from control_plane.engine.experts.dispatcher import Dispatcher
from control_plane.engine.experts.predictor import RouterWeights
from control_plane.engine.model.ragged_batch import token_ids
from control_plane.engine.model.reference.attention import RaggedBatch
from control_plane.engine.model.reference.layers import EmbeddingModule, PackedLinear
from control_plane.engine.model.reference.tensor_views import to_numpy, to_torch
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.kv_cache import KVCache
from control_plane.partition.model.dense_config import DenseConfig

FEW_ROWS = 32
"""Up to this many rows, torch finishes its small products before a second thread has woken up."""


class TransformersModel:
    """A model of transformers whose experts are remote. It is a `DenseModel`."""

    def __init__(
        self, model: PreTrainedModel, config: DenseConfig, moe_layers: Sequence[int], threads: int
    ) -> None:
        self.model = model
        self.config = config
        self._moe_layers = moe_layers
        self._threads = threads
        self._is_packed = isinstance(model.lm_head, PackedLinear)
        """Whether our kernel, which has its own threads, computes all large products."""

    @property
    def stored_embedding_bytes(self) -> int:
        embedding: EmbeddingModule = self.model.model.embed_tokens
        return embedding.stored.nbytes

    @property
    def has_masks(self) -> bool:
        return True

    def attach(self, dispatcher: Dispatcher) -> None:
        for layer in self._moe_layers:
            self.model.model.layers[layer].mlp.experts.attach(layer, dispatcher)

    def router(self, layer: int) -> RouterWeights:
        module = self.model.model.layers[layer]
        weights = module.mlp.gate.weight, module.post_attention_layernorm.weight
        return RouterWeights(*(to_numpy(weight.detach()) for weight in weights))

    @torch.inference_mode()
    def hidden_states(self, batch: list[Chunk], kv_cache: KVCache) -> NDArray[Any]:
        ragged_batch = RaggedBatch.of_chunks(batch, kv_cache)
        tokens = torch.tensor(token_ids(batch))
        few = self._is_packed and len(tokens) <= FEW_ROWS
        torch.set_num_threads(1 if few else self._threads)
        try:
            output = self.model.model(
                input_ids=tokens[None],
                position_ids=ragged_batch.positions[None],
                use_cache=False,
                ragged_batch=ragged_batch,
            )
        finally:
            torch.set_num_threads(self._threads)
        return to_numpy(output.last_hidden_state[0])

    @torch.inference_mode()
    def logits(self, hidden_states: NDArray[Any]) -> NDArray[Any]:
        return to_numpy(self.model.lm_head(to_torch(hidden_states)))
