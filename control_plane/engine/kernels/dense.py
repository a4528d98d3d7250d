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

MOST_TAPS = 256
"""Of a convolution; as in csrc/short_convolution.h."""


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


class Scores(NamedTuple):
    """How queries and keys give the weights of values: softmax(scaling q k), with changes."""

    scaling: float
    window: int | None = None
    """The most tokens that a row sees, its own among them; None for all."""
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap)."""
    sinks: Float32 | None = None
    """[heads]: a score in each head's softmax that belongs to no token."""


class AttentionInputs(NamedTuple):
    """The arrays of a call, checked, and all but the cache's contiguous."""

    keys: NDArray[Any]
    values: NDArray[Any]
    query: NDArray[Any]
    key: NDArray[Any]
    value: NDArray[Any] | None
    sinks: Float32 | None
    lanes: NDArray[np.int64]
    positions: NDArray[np.int64]


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


class ShortConvolution(NamedTuple):
    """A causal convolution along a sequence, of each channel by itself."""

    weight: NDArray[Any]
    """[channels, taps]: of an input and those before it, its own last. float32 or the uint16 bits of
    bfloat16."""
    bias: NDArray[Any] | None
    """[channels]"""
    silu: bool
    """Whether sums x become x * sigmoid(x)."""


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
        cache: tuple[NDArray[Any], NDArray[Any]],
        query: NDArray[Any],
        key: NDArray[Any],
        value: NDArray[Any] | None,
        lanes: NDArray[np.int64],
        positions: NDArray[np.int64],
        scores: Scores,
        *,
        threads: int = 1,
    ) -> NDArray[Any]:
        """Store the keys and values of rows in the cache, then compute softmax(scores) V for each row.

        cache:      a layer's keys [lanes, kv_heads, tokens, key_size] and values [lanes, kv_heads, tokens,
                    value_size], float32 or the uint16 bits of bfloat16: views of one array or of two. The
                    values may be a part of the keys
        query:      [T, heads, key_size], in the dtype of the cache, as key and value
        key:        [T, kv_heads, key_size]; query head i uses head i // (heads / kv_heads) of them
        value:      [T, kv_heads, value_size]; None if the cache's values are a part of its keys
        lanes:      int64 [T], the lane of each row's sequence
        positions:  int64 [T], each row's position in its sequence; it sees the tokens up to its own
        threads:    the most threads, 1 to 64; the result does not depend on it

        Returns [T, heads, value_size] in the dtype of the cache. A row's result does not depend on the
        others. Nothing else may use the arrays during the call, since C releases the interpreter lock.
        Raises ValueError for a wrong dtype, shape or index, with the cache unchanged; MemoryError when out of
        memory.
        """
        keys, values = cache
        _check_cache(keys, values)
        kv_heads, tokens, key_size = keys.shape[1:]
        rows, heads = query.shape[:2]
        check_shape("query", query, (rows, heads, key_size))
        check_shape("key", key, (rows, kv_heads, key_size))
        if value is not None:
            check_shape("value", value, (rows, kv_heads, values.shape[3]))
            value = c_array("value", value, keys.dtype)
        sinks = scores.sinks
        if sinks is not None:
            check_shape("sinks", sinks, (heads,))
            sinks = c_array("sinks", sinks, np.float32)
        check_shape("lanes", lanes, (rows,))
        check_shape("positions", positions, (rows,))
        if heads % kv_heads:
            raise ValueError(f"{heads} heads cannot share those of {kv_heads} keys")
        inputs = AttentionInputs(
            keys,
            values,
            c_array("query", query, keys.dtype),
            c_array("key", key, keys.dtype),
            value,
            sinks,
            c_array("lanes", lanes, np.int64),
            c_array("positions", positions, np.int64),
        )
        scores = scores._replace(window=min(scores.window or tokens, tokens))
        return self._attention(inputs, scores, threads)

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

    def short_convolution(
        self,
        states: NDArray[Any],
        x: NDArray[Any],
        convolution: ShortConvolution,
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
    ) -> NDArray[Any]:
        """A step of a causal convolution for each row, which is of a sequence of its own.

        states:           [places, channels, taps], each channel's last inputs, the newest last; places need
                          not be side by side
        x:                [T, channels], the new inputs; as the states, in the dtype of the weight
        sources, targets: int64 [T], the places of each row's states before and after the step: no other row's

        Returns [T, channels]. A row's result does not depend on the others. Nothing else may use the arrays
        during the call, since C releases the interpreter lock.
        Raises ValueError for a wrong dtype, shape or place, with the states unchanged.
        """
        weight, bias, _ = convolution
        if weight.dtype not in (np.float32, np.uint16) or weight.ndim != 2 or weight.shape[1] > MOST_TAPS:
            raise ValueError(f"not a convolution: {weight.dtype} {weight.shape}")
        channels, taps = weight.shape
        if states.dtype != weight.dtype or states.ndim != 3 or not states[:1].flags.c_contiguous:
            raise ValueError(f"not states: {states.dtype} {states.shape}")
        check_shape("states", states, (len(states), channels, taps))
        check_shape("x", x, (len(x), channels))
        if bias is not None:
            check_shape("bias", bias, (channels,))
            bias = c_array("bias", bias, weight.dtype)
        checked = convolution._replace(weight=c_array("weight", weight, weight.dtype), bias=bias)
        check_shape("sources", sources, (len(x),))
        check_shape("targets", targets, (len(x),))
        before, after = c_array("sources", sources, np.int64), c_array("targets", targets, np.int64)
        return self._short_convolution(states, c_array("x", x, weight.dtype), checked, before, after)

    # The computing, for checked and contiguous arrays. It checks indices.

    @abstractmethod
    def _linear(self, layers: Sequence[LinearLayer], x: NDArray[Any], threads: int) -> list[NDArray[Any]]: ...

    @abstractmethod
    def _attention(self, inputs: AttentionInputs, scores: Scores, threads: int) -> NDArray[Any]: ...

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

    @abstractmethod
    def _short_convolution(
        self,
        states: NDArray[Any],
        x: NDArray[Any],
        convolution: ShortConvolution,
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
    ) -> NDArray[Any]: ...


def _check_cache(keys: NDArray[Any], values: NDArray[Any]) -> None:
    """Raise ValueError for arrays that are no cache, or of which a copy alone could be used."""
    if keys.dtype not in (np.float32, np.uint16) or values.dtype != keys.dtype or keys.ndim != 4:
        raise ValueError(f"not a cache: {keys.dtype} {keys.shape}, {values.dtype} {values.shape}")
    check_shape("values", values, (*keys.shape[:3], *values.shape[3:]))
    for states in (keys, values):
        flags = states.flags
        if not (flags.aligned and flags.writeable and states.strides[3] == states.itemsize):
            raise ValueError("the cache is not aligned and writeable, with contiguous rows")
    if keys.strides[2] != keys.shape[3] * keys.itemsize:
        raise ValueError("the keys of a head's tokens do not follow each other")
