"""The interface of the dense kernels: what they compute, and the checks of their arguments."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from functions.kernels.arguments import c_array, check_activations, check_shape
from functions.kernels.bfloat16 import Float32
from functions.kernels.packed_matrix import LinearShape
from functions.kernels.packed_tiles import Bytes


@dataclass(frozen=True)
class LinearLayer:
    """The packed weights W [N, K] of a linear layer, and its bias [N], if it has one."""

    shape: LinearShape
    weights: Bytes
    """The packed matrix from `pack_matrix`: uint8 [shape.nbytes]."""
    bias: Float32 | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for arrays of a wrong shape or dtype."""
        check_shape("weights", self.weights, (self.shape.nbytes,))
        object.__setattr__(self, "weights", c_array("weights", self.weights, np.uint8))
        if self.bias is not None:
            check_shape("bias", self.bias, (self.shape.outputs,))
            object.__setattr__(self, "bias", c_array("bias", self.bias, np.float32))

    def check_alike(self, other: LinearShape) -> None:
        """Raise ValueError unless one call can compute both layers: they need the same inputs and dtype."""
        if (self.shape.inputs, self.shape.dtype) != (other.inputs, other.dtype):
            raise ValueError(f"layers must have the same inputs and dtype: {self.shape} and {other}")


class AttentionInputs(NamedTuple):
    """The arrays of a call, checked and contiguous, in the order in which the C extension takes them."""

    cache: NDArray[Any]
    query: NDArray[Any]
    key: NDArray[Any]
    value: NDArray[Any]
    cosine: NDArray[Any]
    sine: NDArray[Any]
    lanes: NDArray[np.int64]
    positions: NDArray[np.int64]
    attending: NDArray[np.int64]


class DeltaRows(NamedTuple):
    """What rows bring to a step of the gated delta rule, in the order in which the C extension takes it."""

    query: Float32
    """[T, key_heads, key_size]; heads / key_heads heads share each."""
    key: Float32
    value: Float32
    """[T, heads, value_size]"""
    decay: Float32
    """[T, heads, 1 or key_size]: g, the logarithm of what remains of the state, or of each of its rows (Kimi
    delta attention, arXiv 2510.26692)."""
    beta: Float32
    """[T, heads]"""


@dataclass(frozen=True)
class DenseKernel(ABC):
    """Computes linear layers, attention, norms and steps of recurrent states."""

    name: str
    """The kernel's instruction set: one of `available_dense_isas()`."""

    def linear(
        self, layers: Sequence[LinearLayer], x: NDArray[Any], *, threads: int = 1
    ) -> list[NDArray[Any]]:
        """x W^T + bias for each of 1 to 8 layers, which must have the same inputs and weight dtype.

        x:        [T, K], float32 for f32 weights, the uint16 bits of bfloat16 for bf16, else either
        threads:  the most threads, 1 to 64; the result does not depend on it

        Returns [T, N] for each layer, in the dtype of x. In C, a row's result does not depend on the other
        rows. The arrays must not change during the call, since C releases the interpreter lock.
        Raises ValueError for a wrong dtype or shape, MemoryError when out of memory.
        """
        first = layers[0].shape
        check_activations("x", x, first.dtype)
        for layer in layers:
            layer.check_alike(first)
        if x.ndim != 2 or x.shape[1] != first.inputs:
            raise ValueError(f"x must be [T, {first.inputs}], not {x.shape}")
        return self._linear(layers, c_array("x", x, x.dtype), threads)

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
        """Store the keys and values of all rows in the cache, then compute softmax(scaling q K^T) V for some.

        Queries and keys get their rotary embedding (arXiv 2104.09864), which rotates the pair of values i and
        i + head_dim / 2 of a head.

        cache:      [lanes, layers, 2, kv_heads, tokens, head_dim], float32 or the uint16 bits of bfloat16
        query:      [T, heads, head_dim], in the dtype of the cache, as key, value and rotation
        key, value: [T, kv_heads, head_dim]; query head i uses head i // (heads / kv_heads) of them
        rotation:   cosines and sines [T, head_dim] of the angles of each row's position
        lanes:      int64 [T], the lane of each row's sequence
        positions:  int64 [T], each row's position in its sequence; it sees the tokens up to its own
        attending:  int64 [N], the rows whose output is returned
        window:     the most tokens that a row sees, its own among them; None for all
        threads:    the most threads, 1 to 64; the result does not depend on it

        Returns [N, heads, head_dim] in the dtype of the cache. A row's result does not depend on the others.
        Nothing else may use the arrays during the call, since C releases the interpreter lock.
        Raises ValueError for a wrong dtype, shape or index, with the cache unchanged; MemoryError when out of
        memory.
        """
        flags = cache.flags
        # A copy, as of other arrays, would not keep what is stored.
        if not (flags.c_contiguous and flags.aligned and flags.writeable):
            raise ValueError("the cache is not contiguous, aligned and writeable")
        if cache.dtype not in (np.float32, np.uint16) or cache.ndim != 6:
            raise ValueError(f"not a cache: {cache.dtype} {cache.shape}")
        kv_heads, tokens, head_dim = cache.shape[3:]
        rows, heads = query.shape[:2]
        check_shape("query", query, (rows, heads, head_dim))
        check_shape("key", key, (rows, kv_heads, head_dim))
        check_shape("value", value, (rows, kv_heads, head_dim))
        check_shape("cosines", rotation[0], (rows, head_dim))
        check_shape("sines", rotation[1], (rows, head_dim))
        check_shape("lanes", lanes, (rows,))
        check_shape("positions", positions, (rows,))
        inputs = AttentionInputs(
            cache,
            c_array("query", query, cache.dtype),
            c_array("key", key, cache.dtype),
            c_array("value", value, cache.dtype),
            c_array("cosines", rotation[0], cache.dtype),
            c_array("sines", rotation[1], cache.dtype),
            c_array("lanes", lanes, np.int64),
            c_array("positions", positions, np.int64),
            c_array("attending", attending, np.int64),
        )
        return self._attention(layer, inputs, scaling, min(window or tokens, tokens), threads)

    def rms_norm(self, x: NDArray[Any], weight: NDArray[Any], epsilon: float) -> NDArray[Any]:
        """weight * (x / sqrt(mean(x^2) + epsilon)), with the mean of each row of x [T, H].

        x and weight [H] are both float32, or both the uint16 bits of bfloat16. Returns [T, H] in their dtype.
        Raises ValueError for a wrong dtype or shape.
        """
        if x.dtype not in (np.float32, np.uint16) or x.ndim != 2:
            raise ValueError(f"not rows of activations: {x.dtype} {x.shape}")
        check_shape("weight", weight, x.shape[1:])
        return self._rms_norm(c_array("x", x, x.dtype), c_array("weight", weight, x.dtype), epsilon)

    def delta_rule(
        self,
        states: Float32,
        rows: DeltaRows,
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
        *,
        threads: int = 1,
    ) -> Float32:
        """A step of the gated delta rule (arXiv 2412.06464) for each row, which is of a sequence of its own.

        A head's state maps keys to values. With keys and queries of length 1, queries divided by the root of
        their size besides, a step computes S' = e^g S + k (beta (v - k . e^g S)), and the output q . S'.

        states:           [places, heads, key_size, value_size]; places need not be side by side
        sources, targets: int64 [T], the places of each row's states before and after the step: no other row's
        threads:          the most threads, 1 to 64; the result does not depend on it

        Returns [T, heads, value_size]. A row's result does not depend on the others. Nothing else may use the
        arrays during the call, since C releases the interpreter lock.
        Raises ValueError for a wrong dtype, shape or place, and MemoryError, with the states unchanged.
        """
        if states.dtype != np.float32 or states.ndim != 4 or not states[:1].flags.c_contiguous:
            raise ValueError(f"not states: {states.dtype} {states.shape}")
        count, key_heads = rows.query.shape[:2]
        heads, key_size, value_size = states.shape[1:]
        check_shape("query", rows.query, (count, key_heads, key_size))
        check_shape("key", rows.key, (count, key_heads, key_size))
        check_shape("value", rows.value, (count, heads, value_size))
        check_shape("decay", rows.decay, (count, heads, rows.decay.shape[-1]))
        check_shape("beta", rows.beta, (count, heads))
        checked = [c_array(name, array, np.float32) for name, array in rows._asdict().items()]
        check_shape("sources", sources, (count,))
        check_shape("targets", targets, (count,))
        before, after = c_array("sources", sources, np.int64), c_array("targets", targets, np.int64)
        return self._delta_rule(states, DeltaRows(*checked), before, after, threads)

    # The computing, for checked and contiguous arrays. `_attention` and `_delta_rule` check indices.

    @abstractmethod
    def _linear(self, layers: Sequence[LinearLayer], x: NDArray[Any], threads: int) -> list[NDArray[Any]]: ...

    @abstractmethod
    def _attention(
        self, layer: int, inputs: AttentionInputs, scaling: float, window: int, threads: int
    ) -> NDArray[Any]: ...

    @abstractmethod
    def _rms_norm(self, x: NDArray[Any], weight: NDArray[Any], epsilon: float) -> NDArray[Any]: ...

    @abstractmethod
    def _delta_rule(
        self,
        states: Float32,
        rows: DeltaRows,
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
        threads: int,
    ) -> Float32: ...
