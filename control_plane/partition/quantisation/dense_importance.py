"""How much the errors of the dense part's weights count when they are quantised, by what a profile recorded.

A profile has the mean squares of the experts' inputs, which a norm made of the hidden states. Without the
factors of that norm, they are nearly those of the hidden states before and after the experts as well. So they
tell, with the factors of other norms, the inputs of the same layer's attention, and of the head.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.quantisation.importance import expert_importance
from functions.kernels.bfloat16 import Float32, as_f32
from functions.kernels.packed_expert import Importance

_MODULE = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<part>.+)")


@dataclass(frozen=True)
class DenseImportance:
    """The importance of the inputs of a module's matrices; None where nothing is known of them."""

    tensors: Mapping[str, Tensor]
    """The dense part, by name."""
    input_squares: Mapping[int, Float32]
    """The mean squares [H] of the inputs of the experts of each MoE layer."""

    def of_linear(self, module: str) -> Float32 | None:
        """That of a linear layer of attention, or of the head, [K]. Raises `PartitionError`."""
        if module == "lm_head":
            return self._after_norm(max(self.input_squares), "model.norm.weight")
        found = _MODULE.fullmatch(module)
        if found is None or found["part"] not in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            return None
        return self._after_norm(int(found["layer"]), f"model.layers.{found['layer']}.input_layernorm.weight")

    def of_gated(self, module: str) -> Importance | None:
        """That of a shared expert, whose inputs are those of the layer's experts. Raises `PartitionError`."""
        found = _MODULE.fullmatch(module)
        squares = self.input_squares.get(int(found["layer"])) if found else None
        if squares is None:
            return None
        gate, up = (self._read(f"{module}.{name}_proj.weight") for name in ("gate", "up"))
        return expert_importance(squares, gate.reshape(-1, len(squares)), up.reshape(-1, len(squares)))

    def _after_norm(self, layer: int, name: str) -> Float32 | None:
        """The mean squares of a norm's outputs for a layer's hidden states; None for one without experts."""
        norms = name, f"model.layers.{layer}.post_attention_layernorm.weight"
        if layer not in self.input_squares or not all(each in self.tensors for each in norms):
            return None
        after, before = (np.square(self._read(each)) for each in norms)
        squares = self.input_squares[layer]
        made: Float32 = np.divide(squares * after, before, out=np.zeros_like(squares), where=before > 0)
        return made

    def _read(self, name: str) -> Float32:
        tensor = self.tensors[name]
        return as_f32(tensor.read(0, tensor.size))
