"""The dense kernels in C."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.kernels.arguments import activation_dtype
from functions.kernels.bfloat16 import Float32

from .dense import AttentionInputs, DeltaRows, DenseKernel, LinearLayer, Scores, ShortConvolution

try:
    from . import _dense
except ImportError:
    _dense = None  # type: ignore[assignment]


def compiled_isas() -> tuple[str, ...]:
    """The instruction sets of the C extension that this machine runs, fastest first."""
    return _dense.isas() if _dense else ()


class CDenseKernel(DenseKernel):
    """The C extension, with the instruction set `name`."""

    def _linear(self, layers: Sequence[LinearLayer], x: NDArray[Any], threads: int) -> list[NDArray[Any]]:
        first = layers[0].shape
        outs = [np.empty((len(x), layer.shape.outputs), x.dtype) for layer in layers]
        parts = tuple(
            (layer.shape.outputs, layer.weights, layer.bias, out)
            for layer, out in zip(layers, outs, strict=True)
        )
        _dense.linear(self.name, first.dtype, activation_dtype(x), len(x), first.inputs, threads, x, parts)
        return outs

    def _attention(self, inputs: AttentionInputs, scores: Scores, threads: int) -> NDArray[Any]:
        rows, heads, _ = inputs.query.shape
        out = np.empty((rows, heads, inputs.values.shape[3]), inputs.keys.dtype)
        numbers = rows, heads, scores.window, scores.scaling, scores.softcap or 0.0, threads
        arrays: tuple[Any, ...] = (*inputs, out)
        _dense.attention(self.name, activation_dtype(inputs.keys), *numbers, *arrays)
        return out

    def _rms_norm(self, x: NDArray[Any], weight: NDArray[Any], epsilon: float) -> NDArray[Any]:
        out = np.empty_like(x)
        rows, size = x.shape
        _dense.rms_norm(self.name, activation_dtype(x), rows, size, epsilon, x, weight, out)
        return out

    def _delta_rule(
        self,
        states: Float32,
        rows: DeltaRows,
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
        threads: int,
    ) -> Float32:
        count, key_heads, key_size = rows.query.shape
        heads, value_size = states.shape[1], states.shape[3]
        out = np.empty((count, heads, value_size), np.float32)
        sizes = (count, heads, key_heads, key_size, value_size, rows.decay.shape[2])
        _dense.delta_rule(self.name, *sizes, threads, states, *rows, sources, targets, out)
        return out

    def _short_convolution(
        self,
        states: NDArray[Any],
        x: NDArray[Any],
        convolution: ShortConvolution,
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
    ) -> NDArray[Any]:
        weight, bias, silu = convolution
        out = np.empty_like(x)
        numbers = *x.shape, weight.shape[1], silu
        arrays: tuple[Any, ...] = states, x, weight, bias, sources, targets, out
        _dense.short_convolution(self.name, activation_dtype(x), *numbers, *arrays)
        return out
