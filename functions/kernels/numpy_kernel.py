"""The kernels in NumPy: slow, and the specification of those in C.

Both read the same packed bytes and round at the same three places: activations on their way into a matrix
product take the form that the weights ask for (see `as_operand`), sums are float32, and the output is rounded
once, to the dtype of the hidden states.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bfloat16 import Float32, bf16_to_f32, f32_to_bf16
from .packed_expert import ExpertShape, unpack_expert
from .packed_matrix import Bytes, LinearShape, unpack_matrix

ACTIVATION_GROUP = 128


def gated_ffn(
    shape: ExpertShape,
    block: Bytes,
    offsets: NDArray[np.int64],
    hidden_states: NDArray[Any],
    expert_index: NDArray[np.int16],
    expert_weight: Float32,
    carry: Float32 | None,
    partial: bool,
) -> NDArray[Any]:
    """out[t] = sum over k of weight[t, k] * down_e(silu(gate_e x_t) * up_e x_t), e = expert_index[t, k].

    Takes what `Kernel` takes, with checked dtypes and shapes. Experts are added up in ascending order.
    Raises ValueError for an expert that is out of range or absent, and for a block that is too short.
    """
    from_bf16 = hidden_states.dtype == np.uint16
    hidden = bf16_to_f32(hidden_states) if from_bf16 else hidden_states
    out = np.zeros_like(hidden) if carry is None else carry.copy()
    for expert in np.unique(expert_index[expert_index >= 0]):
        rows, slots = np.nonzero(expert_index == expert)
        gate, up, down = unpack_expert(shape, _packed(block, offsets, shape, int(expert)))
        operand = as_operand(shape.dtype, hidden[rows])
        intermediate = _silu(operand @ gate.T) * (operand @ up.T)
        product = as_operand(shape.dtype, intermediate) @ down.T
        np.add.at(out, rows, product * expert_weight[rows, slots, None])
    return f32_to_bf16(out) if from_bf16 and not partial else out


def linear(shape: LinearShape, weights: Bytes, x: NDArray[Any], bias: Float32 | None) -> NDArray[Any]:
    """out = x W^T + bias. Takes what `Kernel.linear` takes, with checked dtypes and shapes."""
    from_bf16 = x.dtype == np.uint16
    rows = as_operand(shape.dtype, bf16_to_f32(x) if from_bf16 else x)
    out = rows @ unpack_matrix(shape, weights).T
    if bias is not None:
        out += bias
    return f32_to_bf16(out) if from_bf16 else out


def attention(
    cache: NDArray[Any],
    layer: int,
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    cosine: NDArray[Any],
    sine: NDArray[Any],
    lanes: NDArray[np.int64],
    positions: NDArray[np.int64],
    attending: NDArray[np.int64],
    scaling: float,
    window: int,
) -> NDArray[Any]:
    """softmax(scaling q K^T) V. Takes what `Kernel.attention` takes, with checked dtypes and shapes.

    Raises ValueError for a place that the cache does not have.
    """
    ends = (len(cache), cache.shape[4], len(query))
    for places, end in zip((lanes, positions, attending), ends, strict=True):
        outside = places[(places < 0) | (places >= end)]
        if outside.size:
            raise ValueError(f"{outside[0]} is not a number below {end}")
    kv_heads = cache.shape[3]
    if not 0 <= layer < cache.shape[1] or query.shape[1] % kv_heads:
        raise ValueError("the cache has no such layer, or no heads that these could share")
    if query.shape[2] % 2:
        raise ValueError("a head has two halves, and an even size")
    stored = cache[:, layer]
    keys, queries = _rotated(key, cosine, sine), _rotated(query, cosine, sine)
    stored[lanes, 0, :, positions] = f32_to_bf16(keys) if cache.dtype == np.uint16 else keys
    stored[lanes, 1, :, positions] = value
    out = np.empty((len(attending), *query.shape[1:]), np.float32)
    for number, row in enumerate(attending):
        seen = slice(max(0, positions[row] + 1 - window), positions[row] + 1)
        keys, values = _as_f32(stored[lanes[row], :, :, seen])
        heads = queries[row].reshape(kv_heads, -1, query.shape[2])
        scores = heads @ keys.transpose(0, 2, 1) * np.float32(scaling)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        out[number] = (weights @ values).reshape(out.shape[1:])
    return f32_to_bf16(out) if cache.dtype == np.uint16 else out


def _rotated(heads: NDArray[Any], cosine: NDArray[Any], sine: NDArray[Any]) -> Float32:
    """Heads [T, heads, head_dim] with their rotary embedding."""
    values = _as_f32(heads)
    first, second = np.split(values, 2, axis=2)
    turned = np.concatenate([-second, first], axis=2)
    return np.asarray(values * _as_f32(cosine)[:, None] + turned * _as_f32(sine)[:, None], np.float32)


def rms_norm(x: NDArray[Any], weight: NDArray[Any], epsilon: float) -> NDArray[Any]:
    """weight * (x / sqrt(mean(x^2) + epsilon)). Takes what `Kernel.rms_norm` takes, with checked dtypes."""
    values = _as_f32(x)
    mean = np.square(values).mean(axis=1, keepdims=True)
    normalised = values / np.sqrt(mean + np.float32(epsilon))
    if x.dtype != np.uint16:
        return normalised * weight
    return f32_to_bf16(bf16_to_f32(f32_to_bf16(normalised)) * bf16_to_f32(weight))


def as_operand(dtype: str, activations: Float32) -> Float32:
    """Activations [T, K] as a product with weights of `dtype` sees them.

    bf16 rounds them to bfloat16. int8 rounds groups of 128 (the last may be shorter) along K to multiples of
    absmax / 127 of the group, ties to even.
    """
    if dtype == "f32":
        return activations
    if dtype == "bf16":
        return bf16_to_f32(f32_to_bf16(activations))
    starts = np.arange(0, activations.shape[1], ACTIVATION_GROUP)
    absmax: Float32 = np.maximum.reduceat(np.abs(activations), starts, axis=1)
    scale = absmax / np.float32(127)
    scale[scale < np.finfo(np.float32).tiny] = 0
    per_value = np.repeat(scale, ACTIVATION_GROUP, axis=1)[:, : activations.shape[1]]
    quotient = np.divide(activations, per_value, out=np.zeros_like(activations), where=per_value != 0)
    return np.rint(quotient, out=quotient) * per_value


def _packed(block: Bytes, offsets: NDArray[np.int64], shape: ExpertShape, expert: int) -> Bytes:
    if expert >= len(offsets):
        raise ValueError(f"expert index {expert} is out of range: the block has {len(offsets)} experts")
    start = int(offsets[expert])
    if start < 0:
        raise ValueError(f"expert {expert} is absent")
    if start + shape.nbytes > block.size:
        raise ValueError(f"expert {expert} reaches past the end of the block")
    return block[start : start + shape.nbytes]


def _as_f32(values: NDArray[Any]) -> Float32:
    return bf16_to_f32(values) if values.dtype == np.uint16 else values


def _silu(values: Float32) -> Float32:
    with np.errstate(over="ignore"):
        denominator: Float32 = 1 + np.exp(-values)
    return values / denominator
