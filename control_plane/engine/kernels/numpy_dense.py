"""The dense kernels in NumPy: slow, but they run everywhere and specify those in C.

Both read the same packed bytes and round at the same places: activations are converted for the weights' dtype
before a product, sums are float32, and the output is rounded once, to the activations' dtype.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.kernels.bfloat16 import Float32, as_f32, bf16_to_f32, f32_to_bf16
from functions.kernels.products import product

from .dense import AttentionInputs, DeltaRows, DenseKernel, LinearLayer


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

    def _attention(
        self, layer: int, inputs: AttentionInputs, scaling: float, window: int, threads: int
    ) -> NDArray[Any]:
        cache, query, key, value, cosine, sine, lanes, positions, attending = inputs
        _check_indices(layer, inputs)
        stored, kv_heads, head_dim = cache[:, layer], cache.shape[3], cache.shape[5]
        stored[lanes, 0, :, positions] = _like(cache, _rotated(key, cosine, sine))
        stored[lanes, 1, :, positions] = value
        queries = _rotated(query, cosine, sine)
        out = np.empty((len(attending), *query.shape[1:]), np.float32)
        for number, row in enumerate(attending):
            seen = slice(max(0, positions[row] + 1 - window), positions[row] + 1)
            keys, values = as_f32(stored[lanes[row], :, :, seen])
            heads = queries[row].reshape(kv_heads, -1, head_dim)
            scores = heads @ keys.transpose(0, 2, 1) * np.float32(scaling)
            weights = np.exp(scores - scores.max(axis=2, keepdims=True))
            weights /= weights.sum(axis=2, keepdims=True)
            out[number] = (weights @ values).reshape(out.shape[1:])
        return _like(cache, out)

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


def _unit(vectors: Float32) -> Float32:
    """Vectors [..., size] of length 1."""
    unit: Float32 = vectors / np.sqrt(np.square(vectors).sum(axis=-1, keepdims=True) + np.float32(1e-6))
    return unit


def _check_below(indices: NDArray[np.int64], end: int) -> None:
    outside = indices[(indices < 0) | (indices >= end)]
    if outside.size:
        raise ValueError(f"{outside[0]} is not a number below {end}")


def _check_indices(layer: int, inputs: AttentionInputs) -> None:
    """Raise ValueError for a layer, lane, position or row that does not exist, and for a wrong size."""
    cache, query = inputs.cache, inputs.query
    ends = (len(cache), cache.shape[4], len(query))
    for indices, end in zip((inputs.lanes, inputs.positions, inputs.attending), ends, strict=True):
        _check_below(indices, end)
    if not 0 <= layer < cache.shape[1] or query.shape[1] % cache.shape[3]:
        raise ValueError("the cache has no such layer, or no heads that these could share")
    if query.shape[2] % 2:
        raise ValueError("a head has two halves, and an even size")


def _rotated(heads: NDArray[Any], cosine: NDArray[Any], sine: NDArray[Any]) -> Float32:
    """Heads [T, heads, head_dim] with their rotary embedding.

    With bfloat16, both products and their sum are rounded, as transformers does.
    """
    values = as_f32(heads)
    first, second = np.split(values, 2, axis=2)
    turned = np.concatenate([-second, first], axis=2)
    products = values * as_f32(cosine)[:, None], turned * as_f32(sine)[:, None]
    kept, turned = (as_f32(_like(heads, product)) for product in products)
    return as_f32(_like(heads, kept + turned))


def _like(activations: NDArray[Any], values: Float32) -> NDArray[Any]:
    """float32 values in the dtype of `activations`."""
    return f32_to_bf16(values) if activations.dtype == np.uint16 else values
