"""The hook in transformers' attention interface: attention of a ragged batch, over the KV cache.

The model sees the rows of all sequences as one sequence [1, N]. Each row attends to the keys and values of
its own sequence, at their true positions (batch.py).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from control_plane.engine.model.transformers_model.experts import INTERFACE
from control_plane.engine.model.transformers_model.ragged import mask
from control_plane.engine.model.transformers_model.ragged.batch import AttentionCall, RaggedBatch
from control_plane.engine.model.transformers_model.ragged.latents import latents_of
from control_plane.engine.model.transformers_model.ragged.mask import TokenMask
from control_plane.engine.state.kv_cache_shape import KVLayer


@dataclass
class RaggedAttention:
    """Takes the place of the attention functions of a model's modules."""

    layers: list[KVLayer] = field(default_factory=list)
    """What the cache has to keep of a token."""
    batch: RaggedBatch | None = None
    """The batch that is computed now. Without one, calls add to `layers`, and give zeros."""
    _layers: dict[nn.Module, int] = field(default_factory=dict)
    """The layer of the cache that each module uses. Modules that take over others' keys share theirs."""
    _keys: list[torch.Tensor] = field(default_factory=list)
    """The keys of `layers`, while they are found."""

    def __call__(self, module: nn.Module, call: AttentionCall) -> torch.Tensor:
        """Attention of all rows [N, heads, value_size]."""
        if self.batch is None:
            self._add(module, call)
            return call.query.new_zeros(*call.query.shape[:2], call.value_size)
        return self.batch.attend(self._layers[module], call)

    def found(self) -> tuple[KVLayer, ...]:
        """The layers that the forward pass without a batch has found."""
        self._keys.clear()
        return tuple(self.layers)

    def _add(self, module: nn.Module, call: AttentionCall) -> None:
        if module in self._layers:
            raise NotImplementedError(f"{type(module).__name__} attends twice in a pass")
        for number, keys in enumerate(self._keys):
            if keys.data_ptr() == call.key.data_ptr() and keys.shape == call.key.shape:
                self._layers[module] = number
                return
        self._layers[module] = len(self.layers)
        _, heads, key_size = call.key.shape
        self.layers.append(KVLayer(heads, key_size, call.value.shape[2], call.latents is not None))
        self._keys.append(call.key)


def attach_attention(model: nn.Module) -> RaggedAttention:
    """Have the model's modules attend by the object that is returned."""
    attention = RaggedAttention()
    # Which of them attend shows only when they do.
    modules: Any = model.modules()
    for module in modules:
        module.ragged_attention = attention
    return attention


def register() -> None:
    """Make our attention known to transformers, by the name `INTERFACE`. Calling it again is harmless."""
    mask.register()
    AttentionInterface.register(INTERFACE, _attend)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: TokenMask | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """transformers' form: [1, heads, N, size] to [1, N, heads, size], and no attention weights."""
    if attention_mask is None:
        attention_mask = mask.causal(sliding_window)
    if not isinstance(attention_mask, TokenMask):
        raise NotImplementedError(f"{type(module).__name__} changes the mask")
    rows, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    call = AttentionCall(
        rows,
        keys,
        values,
        attention_mask,
        query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap,
        s_aux,
        latents_of(module),
        None if position_bias is None else position_bias[0],
    )
    return module.ragged_attention(module, call)[None], None
