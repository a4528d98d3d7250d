"""Runs the model over one ragged batch."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from control_plane.engine.attention import RaggedBatch
from control_plane.engine.kv_cache import KVCache, KVCacheShape
from control_plane.engine.scheduler import Chunk


@dataclass(frozen=True)
class ModelRunner:
    """The dense model and the cache that its attention reads."""

    model: PreTrainedModel
    kv_cache: KVCache

    @torch.inference_mode()
    def run(self, batch: list[Chunk]) -> torch.Tensor:
        """Logits [n, vocabulary] of the last row of each of the n chunks that reach their sequence's end.

        Raises a `GatewayError` when an expert function stays away; the step can then be run again.
        """
        token_ids = torch.tensor([[token for chunk in batch for token in chunk.token_ids]])
        positions = [torch.arange(chunk.start, chunk.start + chunk.length) for chunk in batch]
        output = self.model.model(
            input_ids=token_ids,
            position_ids=torch.cat(positions)[None],
            use_cache=False,
            ragged_batch=RaggedBatch(batch, self.kv_cache),
        )
        ends = torch.tensor([chunk.length for chunk in batch]).cumsum(0) - 1
        last = [int(end) for end, chunk in zip(ends, batch, strict=True) if chunk.is_last]
        return self.model.lm_head(output.last_hidden_state[0, last])


def kv_cache_shape(model: PreTrainedModel) -> KVCacheShape:
    """What the model keeps for each token."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return KVCacheShape(config.num_hidden_layers, config.num_key_value_heads, head_dim, model.dtype)
