"""The gated FFN of routed experts: its interface, and its implementations in C and NumPy.

An FFN is called gated here even if its experts are without a gate (activation.py).

The NumPy implementation is slow, runs everywhere, and specifies the C implementation. Both read the same
packed bytes and round at the same three places: activations are converted for the weights' dtype before each
product (products.py), sums are float32, and the output is rounded once, to the dtype of the hidden states.
A bias is added to the finished sum of a product.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arguments import activation_dtype, c_array, check_activations, check_shape
from .bfloat16 import Float32, as_f32, f32_to_bf16
from .packed_expert import ExpertShape, split_expert, split_gate_up
from .packed_tiles import Bytes
from .products import product
from .selection import selected

try:
    from . import _gated_ffn
except ImportError:
    _gated_ffn = None  # type: ignore[assignment]


class Inputs(NamedTuple):
    """The arrays of a call, checked and contiguous, in the order in which the C extension takes them."""

    block: Bytes
    offsets: NDArray[np.int64]
    hidden_states: NDArray[Any]
    expert_index: NDArray[np.int16]
    expert_weight: Float32


@dataclass(frozen=True)
class GatedFFNKernel(ABC):
    """Computes the gated FFN of routed experts."""

    name: str
    """The kernel's instruction set: one of `available_isas()`."""

    def gated_ffn(
        self,
        block: Bytes,
        offsets: NDArray[np.int64],
        shape: ExpertShape,
        hidden_states: NDArray[Any],
        expert_index: NDArray[np.int16],
        expert_weight: Float32,
        *,
        threads: int = 1,
        carry: Float32 | None = None,
        partial: bool = False,
    ) -> NDArray[Any]:
        """out[t] = sum over k of weight[t, k] * down(activation(gate(x_t), up(x_t))).

        gate, up and down are those of the expert expert_index[t, k], with its biases if it has some.

        block:          uint8, contains packed experts
        offsets:        int64 [E], the first byte of each expert in the block, -1 for an absent expert
        hidden_states:  [T, H], float32 for f32 gate and up, the uint16 bits of bfloat16 for bf16, else either
        expert_index:   int16 [T, K]; negative indices are skipped
        expert_weight:  float32 [T, K]
        threads:        the most threads, 1 to 64; the result does not depend on it
        carry:          float32 [T, H], the initial value of out; None for zeros
        partial:        whether to return float32 sums, which another call can carry

        Returns [T, H] in the dtype of hidden_states, or float32 if partial. In C, a row's result does not
        depend on the other rows. One call with all experts gives the same bits as several calls with
        ascending experts, in which all but the last are partial and all but the first carry the result of the
        call before. The arrays must not change during the call, since C releases the interpreter lock.
        Raises ValueError for a wrong dtype or shape, and for an expert that is out of range, absent or past
        the end of the block; MemoryError when out of memory.
        """
        check_activations("hidden_states", hidden_states, shape.gate_up_dtype)
        if expert_index.ndim != 2 or expert_weight.shape != expert_index.shape:
            shapes = f"{expert_index.shape}, {expert_weight.shape}"
            raise ValueError(f"expert_index and expert_weight must be [T, K]: {shapes}")
        check_shape("hidden_states", hidden_states, (len(expert_index), shape.hidden_size))
        if carry is not None:
            check_shape("carry", carry, hidden_states.shape)
            carry = c_array("carry", carry, np.float32)
        inputs = Inputs(
            c_array("block", block, np.uint8),
            c_array("offsets", offsets, np.int64),
            c_array("hidden_states", hidden_states, hidden_states.dtype),
            c_array("expert_index", expert_index, np.int16),
            c_array("expert_weight", expert_weight, np.float32),
        )
        return self._compute(shape, inputs, carry, partial, threads)

    @abstractmethod
    def _compute(
        self, shape: ExpertShape, inputs: Inputs, carry: Float32 | None, partial: bool, threads: int
    ) -> NDArray[Any]:
        """`gated_ffn` of checked inputs. Raises ValueError for an expert that the block does not have."""


class CGatedFFN(GatedFFNKernel):
    """The C extension, with the instruction set `name`."""

    def _compute(
        self, shape: ExpertShape, inputs: Inputs, carry: Float32 | None, partial: bool, threads: int
    ) -> NDArray[Any]:
        hidden_states = inputs.hidden_states
        hidden_dtype = activation_dtype(hidden_states)
        out = np.empty(hidden_states.shape, np.float32 if partial else hidden_states.dtype)
        kernel = (self.name, shape.as_arguments(), hidden_dtype, "f32" if partial else hidden_dtype)
        rows, top_k = inputs.expert_index.shape
        _gated_ffn.gated_ffn(*kernel, rows, top_k, threads, *inputs, carry, out)
        return out


@dataclass(frozen=True)
class NumpyGatedFFN(GatedFFNKernel):
    """The specification in NumPy. Adds up experts in ascending order, on one thread."""

    name: str = "numpy"

    def _compute(
        self, shape: ExpertShape, inputs: Inputs, carry: Float32 | None, partial: bool, threads: int
    ) -> NDArray[Any]:
        block, offsets, hidden_states, expert_index, expert_weight = inputs
        hidden = as_f32(hidden_states)
        out = np.zeros_like(hidden) if carry is None else carry.copy()
        for expert in np.unique(expert_index[expert_index >= 0]):
            rows, slots = np.nonzero(expert_index == expert)
            parts = split_expert(shape, _packed(block, offsets, shape, int(expert)))
            gate_up = product(shape.gate_up, parts.gate_up, hidden[rows])
            if parts.gate_up_bias is not None:
                gate_up += parts.gate_up_bias
            activated = shape.activation(*split_gate_up(shape, gate_up))
            outputs = product(shape.down, parts.down, activated)
            if parts.down_bias is not None:
                outputs += parts.down_bias
            np.add.at(out, rows, outputs * expert_weight[rows, slots, None])
        return f32_to_bf16(out) if hidden_states.dtype == np.uint16 and not partial else out


def available_isas() -> tuple[str, ...]:
    """The kernels that this machine runs, fastest first. "numpy" is always the last."""
    return (*(_gated_ffn.isas() if _gated_ffn else ()), NumpyGatedFFN.name)


def load_kernel(isa: str | None = None) -> GatedFFNKernel:
    """The kernel of that name, or of FAASMOE_KERNEL, or the fastest.

    Raises ValueError for one that this machine does not run.
    """
    name = selected(available_isas(), isa)
    return NumpyGatedFFN() if name == NumpyGatedFFN.name else CGatedFFN(name)


def _packed(block: Bytes, offsets: NDArray[np.int64], shape: ExpertShape, expert: int) -> Bytes:
    """The bytes of one packed expert."""
    if expert >= len(offsets):
        raise ValueError(f"expert index {expert} is out of range: the block has {len(offsets)} experts")
    start = int(offsets[expert])
    if start < 0:
        raise ValueError(f"expert {expert} is absent")
    if start + shape.nbytes > block.size:
        raise ValueError(f"expert {expert} reaches past the end of the block")
    return block[start : start + shape.nbytes]
