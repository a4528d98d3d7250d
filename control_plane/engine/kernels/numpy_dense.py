"""The dense kernels in NumPy: slow, but they run everywhere and specify those in C.

Both read the same packed bytes and round at the same places: activations are converted for the weights' dtype
before a product, sums are float32, and the output is rounded once, to the activations' dtype.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.kernels.activation import Activation
from functions.kernels.bfloat16 import Float32, as_f32, bf16_to_f32, f32_to_bf16
from functions.kernels.products import product

from .dense import AttentionInputs, DeltaRows, DenseKernel, LinearLayer, Scores, ShortConvolution


@dataclass(frozen=True)
class NumpyDenseKernel(DenseKernel):
    """The specification in NumPy, on one thread."""

    name: str = "numpy"

    def _linear(self, layers: Sequence[LinearLayer], x: NDArray[Any], threads: int) -> list[NDArray[Any]]:
        outs = []
        for layer in layers:
            out = product(layer.shape, layer.weights, as_f32(x))
            if layer.bias is not None:
                out += layer.bias
            outs.append(_like(x, out))
        return outs

    def _attention(self, inputs: AttentionInputs, scores: Scores, threads: int) -> NDArray[Any]:
        _check_indices(inputs)
        all_keys, all_values, query, key, value, sinks, lanes, positions = inputs
        all_keys[lanes, :, positions] = key
        if value is not None:
            all_values[lanes, :, positions] = value
        kv_heads, key_size, value_size = all_keys.shape[1], all_keys.shape[3], all_values.shape[3]
        sink = np.float32(-np.inf) if sinks is None else sinks.reshape(kv_heads, -1, 1)
        out = np.empty((*query.shape[:2], value_size), np.float32)
        for row, (lane, position) in enumerate(zip(lanes, positions, strict=True)):
            seen = slice(max(0, position + 1 - (scores.window or position + 1)), position + 1)
            keys, values = as_f32(all_keys[lane, :, seen]), as_f32(all_values[lane, :, seen])
            heads = as_f32(query[row]).reshape(kv_heads, -1, key_size)
            given = heads @ keys.transpose(0, 2, 1) * np.float32(scores.scaling)
            if scores.softcap:
                given = np.float32(scores.softcap) * np.tanh(given / np.float32(scores.softcap))
            largest = np.maximum(given.max(axis=2, keepdims=True), sink)
            weights = np.exp(given - largest)
            weights /= weights.sum(axis=2, keepdims=True) + np.exp(sink - largest)
            out[row] = (weights @ values).reshape(out.shape[1:])
        return _like(query, out)

    def _rms_norm(self, x: NDArray[Any], weight: NDArray[Any], epsilon: float) -> NDArray[Any]:
        values = as_f32(x)
        mean = np.square(values).mean(axis=1, keepdims=True)
        normalised: Float32 = values / np.sqrt(mean + np.float32(epsilon))
        if x.dtype == np.float32:
            scaled: Float32 = normalised * weight
            return scaled
        # As in transformers, the normalised values are rounded before they are multiplied with the weight.
        return f32_to_bf16(bf16_to_f32(f32_to_bf16(normalised)) * bf16_to_f32(weight))

    def _delta_rule(
        self,
        states: Float32,
        rows: DeltaRows,
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
        threads: int,
    ) -> Float32:
        query, key, value, decay, beta = rows
        heads, key_size = states.shape[1:3]
        if heads % key.shape[1] or decay.shape[2] not in (1, key_size):
            raise ValueError("heads cannot share these keys, or have no such decay")
        for places in (sources, targets):
            _check_below(places, len(states))
        query, key = (np.repeat(_unit(x), heads // key.shape[1], axis=1) for x in (query, key))
        query /= np.sqrt(np.float32(key_size))
        state = states[sources] * np.exp(decay)[..., None]
        known = np.einsum("thkv,thk->thv", state, key)
        delta = beta[..., None] * (value - known)
        state += key[..., None] * delta[:, :, None]
        states[targets] = state
        out: Float32 = np.einsum("thkv,thk->thv", state, query)
        return out

    def _short_convolution(
        self,
        states: NDArray[Any],
        x: NDArray[Any],
        convolution: ShortConvolution,
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
    ) -> NDArray[Any]:
        for places in (sources, targets):
            _check_below(places, len(states))
        weight, bias, silu = convolution
        inputs = np.concatenate([states[sources][..., 1:], x[..., None]], axis=-1)
        states[targets] = inputs
        out: Float32 = (as_f32(inputs) * as_f32(weight)).sum(axis=-1)
        if bias is not None:
            out += as_f32(bias)
        if silu:
            out = Activation().of_gate(as_f32(_like(x, out)))
        return _like(x, out)


def _unit(vectors: Float32) -> Float32:
    """Vectors [..., size] of length 1."""
    unit: Float32 = vectors / np.sqrt(np.square(vectors).sum(axis=-1, keepdims=True) + np.float32(1e-6))
    return unit


def _check_below(indices: NDArray[np.int64], end: int) -> None:
    outside = indices[(indices < 0) | (indices >= end)]
    if outside.size:
        raise ValueError(f"{outside[0]} is not a number below {end}")


def _check_indices(inputs: AttentionInputs) -> None:
    """Raise ValueError for a lane or position that does not exist."""
    lanes, _, tokens, _ = inputs.keys.shape
    _check_below(inputs.lanes, lanes)
    _check_below(inputs.positions, tokens)


def _like(activations: NDArray[Any], values: Float32) -> NDArray[Any]:
    """float32 values in the dtype of `activations`."""
    return f32_to_bf16(values) if activations.dtype == np.uint16 else values
