"""The dense half of a layer as one call of the C extension, over a ragged batch."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from functions.kernels.arguments import activation_dtype, check_shape
from functions.kernels.bfloat16 import Float32

from .dense import LinearLayer
from .layer_parts import LayerShape, LayerWeights, Router, SharedExpert

try:
    from . import _dense
except ImportError:
    _dense = None  # type: ignore[assignment]


class BatchRows(NamedTuple):
    """What a layer has to know of each of T rows."""

    lanes: NDArray[np.int64]
    """[T]: the lane of the row's sequence in the cache."""
    positions: NDArray[np.int64]
    """[T], in the row's sequence. The rows before it have to be in the cache, or in this batch."""
    cosine: NDArray[Any]
    """[T, `LayerShape.rotated`], of the angles of its position."""
    sine: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Routed:
    """The rows that go to a layer's experts."""

    hidden_states: NDArray[Any]
    """[T, H]"""
    index: NDArray[np.int64]
    """[T, K]: the chosen experts, the best first; K is 0 for a layer without experts."""
    weights: Float32
    """[T, K]"""


class LayerProgram:
    """A layer whose weights and numbers the C extension has, so that a call passes only the rows.

    With bfloat16, values are rounded where transformers rounds them. A row's result depends neither on the
    other rows nor on the number of threads.
    """

    def __init__(self, isa: str, shape: LayerShape, weights: LayerWeights, dtype: str) -> None:
        """`dtype` is that of the activations: "f32" or "bf16".

        Raises ValueError for an instruction set that is not here, or weights that do not fit together."""
        w, router = weights, weights.router
        self._shape = shape
        self._dtype = np.dtype(np.uint16 if dtype == "bf16" else np.float32)
        self._top_k = 0 if router is None else router.top_k
        self._has_shared = w.shared is not None
        self._program = _dense.layer_program(
            isa,
            dtype,
            (
                shape.hidden_size,
                shape.heads,
                shape.kv_heads,
                shape.head_dim,
                shape.window or 1 << 24,
                shape.head_dim if shape.rotated is None else shape.rotated,
            ),
            (
                shape.epsilon,
                shape.scaling or shape.head_dim**-0.5,
                np.inf if shape.clip is None else shape.clip,
                shape.residual,
            ),
            (shape.norms_heads, shape.norms_rotated, shape.interleaved, shape.gate_function),
            _router(router),
            (w.input_norm, w.attention_norm, w.ffn_norm, w.ffn_output_norm, w.query_norm, w.key_norm),
            tuple(
                map(
                    _matrix,
                    (w.query, w.key, w.value, w.gate, w.output, router.linear if router else None),
                )
            ),
            None if w.shared is None else _shared(w.shared),
        )

    def begin(
        self, cache: NDArray[Any], layer: int, hidden: NDArray[Any], rows: BatchRows, threads: int
    ) -> Routed:
        """Add attention to the rows `hidden` [T, H] in place, and choose their experts.

        cache: see `DenseKernel.attention`; the rows' keys and values are stored in it. Nothing else may use
        the arrays during the call, since C releases the interpreter lock. Raises ValueError for arrays that
        do not fit together, with nothing changed; MemoryError when out of memory.
        """
        lanes, layers, _, kv_heads, tokens, head_dim = cache.shape
        routed = Routed(
            np.empty_like(hidden),
            np.empty((len(hidden), self._top_k), np.int64),
            np.empty((len(hidden), self._top_k), np.float32),
        )
        self._check(hidden)
        sizes = lanes, layers, kv_heads, tokens, head_dim
        _dense.layer_begin(
            self._program,
            layer,
            threads,
            sizes,
            cache,
            hidden,
            rows.cosine,
            rows.sine,
            rows.lanes,
            rows.positions,
            routed.hidden_states,
            routed.index,
            routed.weights,
        )
        return routed

    def shared(self, hidden_states: NDArray[Any], threads: int) -> NDArray[Any] | None:
        """The output [T, H] of the shared expert for `Routed.hidden_states`; None for a layer without."""
        if not self._has_shared:
            return None
        self._check(hidden_states)
        out = np.empty_like(hidden_states)
        _dense.layer_shared(self._program, threads, len(out), hidden_states, out)
        return out

    def end(self, hidden: NDArray[Any], routed: NDArray[Any] | None, shared: NDArray[Any] | None) -> None:
        """Add the outputs [T, H] of the routed experts and of the shared one to the rows in place.

        `routed` may be float32 with any activations.
        """
        self._check(hidden)
        dtype = activation_dtype(hidden if routed is None else routed)
        _dense.layer_end(self._program, hidden, dtype, routed, shared)

    def _check(self, rows: NDArray[Any]) -> None:
        check_shape("rows", rows, (len(rows), self._shape.hidden_size))
        if rows.dtype != self._dtype:
            raise ValueError(f"rows must be {self._dtype}, not {rows.dtype}")


def _router(router: Router | None) -> tuple[object, ...]:
    if router is None:
        return 1, 1, 1, "softmax", False, 1.0, None
    return (
        router.top_k,
        router.groups,
        router.chosen_groups,
        router.scores,
        router.normalised,
        router.scale,
        router.correction,
    )


def _matrix(layer: LinearLayer | None) -> tuple[object, ...] | None:
    if layer is None:
        return None
    return layer.shape.dtype, layer.shape.outputs, layer.shape.inputs, layer.weights, layer.bias


def _shared(ffn: SharedExpert) -> tuple[object, ...]:
    return ffn.shape.as_arguments(), ffn.packed, ffn.gate
