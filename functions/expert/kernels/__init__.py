"""The gated FFN of routed experts, from packed weights: C where it is built, NumPy everywhere.

`load_kernel()` picks the fastest that this machine runs. The C extension is optional: without it there is one
kernel, "numpy".
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import numpy_kernel
from .packing import Bytes, ExpertShape, Float32

try:
    from . import _gated_ffn
except ImportError:
    _gated_ffn = None

__all__ = ["ExpertShape", "Kernel", "available_isas", "load_kernel"]

_NUMPY = "numpy"


@dataclass(frozen=True)
class Kernel:
    """The gated FFN of routed experts by one instruction set, a name from `available_isas`."""

    name: str

    def __call__(
        self,
        block: Bytes,
        offsets: NDArray[np.int64],
        shape: ExpertShape,
        hidden_states: NDArray[Any],
        expert_index: NDArray[np.int16],
        expert_weight: Float32,
        *,
        threads: int = 1,
    ) -> NDArray[Any]:
        """out[t] = sum over k of weight[t, k] * down_e(silu(gate_e x_t) * up_e x_t), e = expert_index[t, k].

        block:          uint8, holds packed experts
        offsets:        int64 [E], the byte of the block at which each expert begins, -1 for an absent one
        hidden_states:  [T, H], float32 for f32 weights, the uint16 bits of bfloat16 for bf16, either for int8
        expert_index:   int16 [T, K]; one below zero is skipped
        expert_weight:  float32 [T, K]
        threads:        1 to 64; does not change the result

        Returns [T, H] in the dtype of hidden_states. In C a row's result is the same whatever rows are beside it.
        Raises ValueError for a dtype or shape that does not fit, and for an expert that is out of range, absent
        or past the end of the block; MemoryError without working memory.
        """
        _check_dtypes(block, offsets, expert_index, expert_weight)
        hidden_dtype = _hidden_dtype(shape, hidden_states)
        rows, top_k = _check_shapes(shape, hidden_states, expert_index, expert_weight)
        if self.name == _NUMPY:
            return numpy_kernel.gated_ffn(block, offsets, shape, hidden_states, expert_index, expert_weight)
        out = np.empty_like(hidden_states, order="C")
        sizes = (rows, top_k, shape.hidden_size, shape.intermediate_size)
        inputs = (block, offsets, hidden_states, expert_index, expert_weight)
        plain = (np.require(array, requirements="CA") for array in inputs)
        _gated_ffn.run(self.name, shape.dtype, hidden_dtype, *sizes, threads, *plain, out)
        return out


def available_isas() -> tuple[str, ...]:
    """The kernels that this machine runs, fastest first: of "avx512", "avx2", "c", "numpy"."""
    return (*(_gated_ffn.isas() if _gated_ffn else ()), _NUMPY)


def load_kernel(isa: str | None = None) -> Kernel:
    """The kernel of that name, or the fastest. Raises ValueError for one that this machine does not run."""
    isas = available_isas()
    if isa is not None and isa not in isas:
        raise ValueError(f"no kernel {isa!r} here, only {', '.join(isas)}")
    return Kernel(isa or isas[0])


def _hidden_dtype(shape: ExpertShape, hidden_states: NDArray[Any]) -> str:
    name = {np.dtype(np.float32): "f32", np.dtype(np.uint16): "bf16"}.get(hidden_states.dtype)
    if name is None or shape.dtype not in (name, "int8"):
        raise ValueError(f"hidden_states of dtype {hidden_states.dtype} do not fit {shape.dtype} weights")
    return name


def _check_dtypes(block: Bytes, offsets: NDArray[Any], index: NDArray[Any], weight: NDArray[Any]) -> None:
    found = (block.dtype, offsets.dtype, index.dtype, weight.dtype)
    if found != (np.uint8, np.int64, np.int16, np.float32):
        names = ", ".join(str(dtype) for dtype in found)
        raise ValueError(
            f"block, offsets, expert_index, expert_weight must be uint8, int64, int16, float32: {names}"
        )


def _check_shapes(
    shape: ExpertShape, hidden_states: NDArray[Any], index: NDArray[Any], weight: NDArray[Any]
) -> tuple[int, int]:
    """T and K."""
    if index.ndim != 2 or weight.shape != index.shape:
        raise ValueError(f"expert_index and expert_weight must be [T, K]: {index.shape}, {weight.shape}")
    rows, top_k = index.shape
    if hidden_states.shape != (rows, shape.hidden_size):
        raise ValueError(f"hidden_states must be [{rows}, {shape.hidden_size}], not {hidden_states.shape}")
    return rows, top_k
