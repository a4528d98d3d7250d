"""The gated FFN of experts, linear layers, attention and norms: C where it is built, NumPy everywhere.

`load_kernel()` picks the fastest that this machine runs. The C extension is optional: without it there is one
kernel, "numpy".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import numpy_kernel
from .bfloat16 import Float32
from .packed_expert import ExpertShape
from .packed_matrix import Bytes, LinearShape

try:
    from . import _gated_ffn
except ImportError:
    _gated_ffn = None  # type: ignore[assignment]

__all__ = [
    "MAX_THREADS",
    "ExpertShape",
    "Kernel",
    "LinearLayer",
    "LinearShape",
    "available_isas",
    "load_kernel",
]

MAX_THREADS = 64
"""As many as a kernel takes."""

_NUMPY = "numpy"
_ACTIVATION_DTYPES = {np.dtype(np.float32): "f32", np.dtype(np.uint16): "bf16"}


@dataclass(frozen=True)
class LinearLayer:
    """The packed W [N, K] of a linear layer, and its bias [N], if it has one."""

    shape: LinearShape
    weights: Bytes
    """[shape.nbytes]"""
    bias: Float32 | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for arrays of another shape or dtype."""
        _check("weights", self.weights, (self.shape.nbytes,))
        object.__setattr__(self, "weights", _plain("weights", self.weights, np.uint8))
        if self.bias is not None:
            _check("bias", self.bias, (self.shape.outputs,))
            object.__setattr__(self, "bias", _plain("bias", self.bias, np.float32))

    def check(self, other: LinearShape) -> None:
        """Raises ValueError unless it can be computed beside another one."""
        if (self.shape.inputs, self.shape.dtype) != (other.inputs, other.dtype):
            raise ValueError(f"layers must be alike: {self.shape} beside {other}")


@dataclass(frozen=True)
class Kernel:
    """What is computed on one instruction set: a name from `available_isas`."""

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
        carry: Float32 | None = None,
        partial: bool = False,
    ) -> NDArray[Any]:
        """out[t] = sum over k of weight[t, k] * down_e(silu(gate_e x_t) * up_e x_t), e = expert_index[t, k].

        block:          uint8, holds packed experts
        offsets:        int64 [E], the byte of the block at which each expert begins, -1 for an absent one
        hidden_states:  [T, H], float32 for f32 weights, the uint16 bits of bfloat16 for bf16, either for int8
        expert_index:   int16 [T, K]; one below zero is skipped
        expert_weight:  float32 [T, K]
        threads:        1 to 64, at most; the result does not depend on it
        carry:          float32 [T, H], to which out is added; None for nothing
        partial:        to return the float32 sums as they are, for another call to carry on

        Returns [T, H] in the dtype of hidden_states, or float32 if partial. In C, a row's result does not
        depend on the other rows. Calls with some of the experts each, in ascending order, of which all but
        the last are partial and all but the first carry on the one before, give the bits of one with all.
        The arrays must not change during the call: C releases the interpreter lock.
        Raises ValueError for a dtype or shape that does not fit, and for an expert that is out of range,
        absent or past the end of the block; MemoryError without working memory.
        """
        hidden_dtype = _activation_dtype("hidden_states", hidden_states, shape.dtype)
        rows, top_k = _check_shapes(shape, hidden_states, expert_index, expert_weight)
        if carry is not None and carry.shape != hidden_states.shape:
            raise ValueError(f"carry must be {hidden_states.shape}, not {carry.shape}")
        inputs = (
            _plain("block", block, np.uint8),
            _plain("offsets", offsets, np.int64),
            _plain("hidden_states", hidden_states, hidden_states.dtype),
            _plain("expert_index", expert_index, np.int16),
            _plain("expert_weight", expert_weight, np.float32),
        )
        carried = None if carry is None else _plain("carry", carry, np.float32)
        if self.name == _NUMPY:
            return numpy_kernel.gated_ffn(shape, *inputs, carried, partial)
        out = np.empty(hidden_states.shape, np.float32 if partial else hidden_states.dtype)
        dtypes = (shape.dtype, hidden_dtype, "f32" if partial else hidden_dtype)
        sizes = (rows, top_k, shape.hidden_size, shape.intermediate_size)
        _gated_ffn.run(self.name, *dtypes, *sizes, threads, *inputs, carried, out)
        return out

    def linear(
        self,
        layers: Sequence[LinearLayer],
        x: NDArray[Any],
        *,
        threads: int = 1,
    ) -> list[NDArray[Any]]:
        """x W^T + bias of one layer or several (8 at most), which have the same inputs and weights' dtype.

        x:        [T, K], float32 for f32 weights, the uint16 bits of bfloat16 for bf16, either for int8
        threads:  1 to 64, at most; the result does not depend on it

        Returns a [T, N] for each layer, in the dtype of x. In C, a row's result depends on no other row.
        The arrays must not change during the call: C releases the interpreter lock.
        Raises ValueError for a dtype or shape that does not fit, MemoryError without working memory.
        """
        first = layers[0].shape
        dtype = _activation_dtype("x", x, first.dtype)
        for layer in layers:
            layer.check(first)
        if x.ndim != 2 or x.shape[1] != first.inputs:
            raise ValueError(f"x must be [T, {first.inputs}], not {x.shape}")
        rows = _plain("x", x, x.dtype)
        if self.name == _NUMPY:
            return [numpy_kernel.linear(layer.shape, layer.weights, rows, layer.bias) for layer in layers]
        outs = [np.empty((len(x), layer.shape.outputs), x.dtype) for layer in layers]
        parts = tuple(
            (layer.shape.outputs, layer.weights, layer.bias, out)
            for layer, out in zip(layers, outs, strict=True)
        )
        sizes = (len(x), first.inputs)
        _gated_ffn.linear(self.name, first.dtype, dtype, *sizes, threads, rows, parts)
        return outs

    def attention(
        self,
        cache: NDArray[Any],
        layer: int,
        query: NDArray[Any],
        key: NDArray[Any],
        value: NDArray[Any],
        rotation: tuple[NDArray[Any], NDArray[Any]],
        lanes: NDArray[np.int64],
        positions: NDArray[np.int64],
        attending: NDArray[np.int64],
        *,
        scaling: float,
        window: int | None = None,
        threads: int = 1,
    ) -> NDArray[Any]:
        """softmax(scaling q K^T) V of some rows; first the keys and values of all are put into the cache.

        Queries and keys get their rotary embedding (arXiv 2104.09864), which pairs value i of a head with
        value i + head_dim / 2.

        cache:      [lanes, layers, 2, kv_heads, tokens, head_dim], float32 or the uint16 bits of bfloat16
        query:      [T, heads, head_dim], of the cache's dtype, as the next two
        key, value: [T, kv_heads, head_dim]; head i shares those of number i // (heads / kv_heads)
        rotation:   [T, head_dim] each: cosines and sines of the angles of each row's position
        lanes:      int64 [T], where each row's sequence has its past
        positions:  int64 [T], where in it the row is: it sees what is there up to itself
        attending:  int64 [N], the rows whose output is wanted
        window:     how many tokens a row sees at most, itself among them; None for all
        threads:    1 to 64, at most; the result does not depend on it

        Returns [N, heads, head_dim] in the dtype of the cache. A row's result does not depend on the others.
        Nobody else may use the arrays during the call: C releases the interpreter lock.
        Raises ValueError for a dtype, shape or number that does not fit; MemoryError without working memory.
        """
        dtype = _ACTIVATION_DTYPES.get(cache.dtype)
        if dtype is None or cache.ndim != 6 or not cache.flags.c_contiguous:
            raise ValueError(f"not a cache: {cache.dtype} {cache.shape}")
        num_lanes, num_layers, _, kv_heads, tokens, head_dim = cache.shape
        rows, heads = query.shape[:2]
        _check("query", query, (rows, heads, head_dim))
        _check("key", key, (rows, kv_heads, head_dim))
        _check("value", value, (rows, kv_heads, head_dim))
        _check("cosines", rotation[0], (rows, head_dim))
        _check("sines", rotation[1], (rows, head_dim))
        _check("lanes", lanes, (rows,))
        _check("positions", positions, (rows,))
        inputs = (
            _plain("query", query, cache.dtype),
            _plain("key", key, cache.dtype),
            _plain("value", value, cache.dtype),
            _plain("cosines", rotation[0], cache.dtype),
            _plain("sines", rotation[1], cache.dtype),
            _plain("lanes", lanes, np.int64),
            _plain("positions", positions, np.int64),
            _plain("attending", attending, np.int64),
        )
        window = min(window or tokens, tokens)
        if self.name == _NUMPY:
            return numpy_kernel.attention(cache, layer, *inputs, scaling, window)
        out = np.empty((len(attending), heads, head_dim), cache.dtype)
        sizes = (num_lanes, num_layers, kv_heads, tokens, head_dim, layer, rows, heads, window)
        _gated_ffn.attention(self.name, dtype, *sizes, scaling, threads, cache, *inputs, out)
        return out

    def rms_norm(self, x: NDArray[Any], weight: NDArray[Any], epsilon: float) -> NDArray[Any]:
        """weight * (x / sqrt(mean(x^2) + epsilon)), where the mean is of each row of x [T, H].

        x and weight [H] are both float32, or both the uint16 bits of bfloat16. Returns [T, H] in their dtype.
        Raises ValueError for a dtype or shape that does not fit.
        """
        dtype = _ACTIVATION_DTYPES.get(x.dtype)
        if dtype is None or x.ndim != 2:
            raise ValueError(f"not rows of activations: {x.dtype} {x.shape}")
        _check("weight", weight, x.shape[1:])
        rows, factors = _plain("x", x, x.dtype), _plain("weight", weight, x.dtype)
        if self.name == _NUMPY:
            return numpy_kernel.rms_norm(rows, factors, epsilon)
        out = np.empty_like(rows)
        _gated_ffn.rms_norm(self.name, dtype, len(rows), len(factors), epsilon, rows, factors, out)
        return out


def available_isas() -> tuple[str, ...]:
    """The kernels that this machine runs, fastest first: of "avx512", "avx2", "c" and "numpy"."""
    return (*(_gated_ffn.isas() if _gated_ffn else ()), _NUMPY)


def load_kernel(isa: str | None = None) -> Kernel:
    """The kernel of that name, or the fastest. Raises ValueError for one that this machine does not run."""
    isas = available_isas()
    if isa is not None and isa not in isas:
        raise ValueError(f"no kernel {isa!r} here, only {', '.join(isas)}")
    return Kernel(isa or isas[0])


def _activation_dtype(name: str, activations: NDArray[Any], weight_dtype: str) -> str:
    dtype = _ACTIVATION_DTYPES.get(activations.dtype)
    if dtype is None or weight_dtype not in (dtype, "int8"):
        raise ValueError(f"{name} of dtype {activations.dtype} do not fit {weight_dtype} weights")
    return dtype


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


def _check(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, not {list(array.shape)}")


def _plain(name: str, array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """The array as C reads it: of that dtype, contiguous and aligned. Copies only if it has to."""
    if array.dtype != dtype:
        raise ValueError(f"{name} must be {np.dtype(dtype)}, not {array.dtype}")
    flags = array.flags
    # Asked first, since numpy.require takes longer than many a small call has.
    if flags.c_contiguous and flags.aligned:
        return array
    return np.require(array, requirements=["C", "A"])
