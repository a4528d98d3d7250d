"""transformers' cache, as the modules of a ragged model see it: keys and values pass, states are kept."""

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionCacheLayerMixin


class StateKey(NamedTuple):
    """Names a state, as transformers' cache does."""

    kind: str
    layer: int
    number: int
    """Among those of its kind in the layer."""


def keeps_states(config: PretrainedConfig) -> bool:
    """Whether transformers' own cache of such a model keeps other things than keys and values."""
    layers: list[Any] = DynamicCache(config=config).layers
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


class StateCache(Cache):
    """A cache whose subclasses say where states are.

    Attention gets the keys and values of the step alone back: it finds those of the past itself.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.positions = torch.zeros(1, dtype=torch.int64)
        """[N]: those of the step's rows in their sequences."""

    @abstractmethod
    def read(self, key: StateKey) -> torch.Tensor | None:
        """The state before the rows that are computed now; None before a sequence's first token."""

    @abstractmethod
    def write(self, key: StateKey, state: torch.Tensor) -> None:
        """Keep the state after the rows that are computed now."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """The tokens of the longest sequence, the first of which is the first that rows see."""
        return int(self.positions.max()) + 1, 0

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        """[N]: what makes the numbers of rows their positions. Biases of distances are computed of those."""
        return self.positions - torch.arange(len(self.positions))

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        # It is asked for masks of padding, and a ragged batch has none.
        return False

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.read(StateKey("conv", layer_idx, state_idx))

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Columns [batch, channels, n] behind those of the past, of which the last ones are kept."""
        key = StateKey("conv", layer_idx, state_idx)
        size = conv_kernel_size or conv_states.shape[-1]
        state = self.read(key)
        if state is None:
            columns = F.pad(conv_states, (max(size - conv_states.shape[-1], 0), 0))
        else:
            columns = torch.cat([state, conv_states], dim=-1)
        self.write(key, columns[..., -size:])
        return columns

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.read(StateKey("recurrent", layer_idx, state_idx))

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        self.write(StateKey("recurrent", layer_idx, state_idx), recurrent_states)
        return recurrent_states
