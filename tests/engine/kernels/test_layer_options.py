"""What layers of some families have besides: parts of heads rotated, gates, more norms, factors.

The reference is written here, in NumPy.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from control_plane.engine.kernels import LinearLayer
from control_plane.engine.kernels.c_dense import compiled_isas
from control_plane.engine.kernels.layer_parts import LayerShape, LayerWeights
from control_plane.engine.kernels.layer_program import BatchRows, LayerProgram
from functions.kernels.bfloat16 import Float32
from functions.kernels.packed_matrix import LinearShape, pack_matrix

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, ROWS = 40, 4, 2, 6, 9
EPSILON = 1e-5
CASES: list[dict[str, Any]] = [
    {},
    {"rotated": 4},
    {"rotated": 0},
    {"interleaved": True},
    {"rotated": 2, "interleaved": True},
    {"norms_rotated": True, "head_norms": HEAD_DIM},
    {"head_norms": HEAD_DIM, "rotated": 4, "scaling": 0.2},
    {"norms_rotated": True, "head_norms": HEADS * HEAD_DIM},
    {"gates": HEADS, "gate_function": "softplus"},
    {"gates": HEADS * HEAD_DIM},
    {"residual": 0.3, "norms": ("input_norm", "ffn_norm")},
    {"norms": ("attention_norm", "ffn_output_norm"), "residual": 0.3},
    {"norms": ("input_norm", "attention_norm", "ffn_norm", "ffn_output_norm")},
]


class Layer:
    """A random layer in float32, and what it computes."""

    def __init__(
        self, norms: tuple[str, ...] = (), head_norms: int = 0, gates: int = 0, **numbers: Any
    ) -> None:
        random = np.random.default_rng(0)

        def normal(*shape: int) -> Float32:
            return random.standard_normal(shape, np.float32) / np.float32(max(shape[1:], default=4) ** 0.5)

        keys, queries = KV_HEADS * HEAD_DIM, HEADS * HEAD_DIM
        self.matrices = {
            "query": normal(queries, HIDDEN),
            "key": normal(keys, HIDDEN),
            "value": normal(keys, HIDDEN),
            "output": normal(HIDDEN, queries),
        }
        if gates:
            self.matrices["gate"] = normal(gates, HIDDEN)
        self.norms = {name: normal(HIDDEN) for name in norms}
        if head_norms:
            self.norms["query_norm"] = normal(head_norms)
            self.norms["key_norm"] = normal(head_norms if head_norms == HEAD_DIM else keys)
        self.shape = LayerShape(
            HIDDEN, HEADS, KV_HEADS, HEAD_DIM, EPSILON, norms_heads=head_norms == HEAD_DIM, **numbers
        )
        self.hidden, self.experts = normal(ROWS, HIDDEN), normal(ROWS, HIDDEN)
        rotated = HEAD_DIM if self.shape.rotated is None else self.shape.rotated
        angles = np.tile(normal(ROWS, rotated // 2), 2)
        self.rows = BatchRows(np.zeros(ROWS, np.int64), np.arange(ROWS), np.cos(angles), np.sin(angles))

    def program(self, isa: str) -> LayerProgram:
        linears = {name: linear(matrix) for name, matrix in self.matrices.items()}
        return LayerProgram(isa, self.shape, LayerWeights(**linears, **self.norms), "f32")  # type: ignore[arg-type]

    def begin(self) -> tuple[Float32, Float32]:
        """The rows with attention, and the input of the experts."""
        x = self._norm("input_norm", self.hidden)
        query, key = (self._heads(x, name, f"{name}_norm") for name in ("query", "key"))
        value = (x @ self.matrices["value"].T).reshape(ROWS, KV_HEADS, HEAD_DIM)
        shared = HEADS // KV_HEADS
        scores = np.einsum("qhd,khd->hqk", query, key.repeat(shared, axis=1))
        scores *= self.shape.scaling or HEAD_DIM**-0.5
        scores[:, np.triu(np.ones((ROWS, ROWS), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        attended = np.einsum("hqk,khd->qhd", weights, value.repeat(shared, axis=1))
        if "gate" in self.matrices:
            gate = x @ self.matrices["gate"].T
            gate = (
                np.log1p(np.exp(gate)) if self.shape.gate_function == "softplus" else 1 / (1 + np.exp(-gate))
            )
            attended = attended * gate.reshape(ROWS, HEADS, -1)
        output = attended.reshape(ROWS, -1) @ self.matrices["output"].T
        hidden = self.hidden + self.shape.residual * self._norm("attention_norm", output)
        return hidden, self._norm("ffn_norm", hidden)

    def end(self, hidden: Float32) -> Float32:
        added: Float32 = hidden + self.shape.residual * self._norm("ffn_output_norm", self.experts)
        return added

    def _heads(self, x: Float32, matrix: str, norm: str) -> Float32:
        values = x @ self.matrices[matrix].T
        heads = HEADS if matrix == "query" else KV_HEADS

        def normed(values: NDArray[Any]) -> NDArray[Any]:
            size = HEAD_DIM if self.shape.norms_heads else heads * HEAD_DIM
            return self._norm(norm, values.reshape(ROWS, -1, size)).reshape(ROWS, heads, HEAD_DIM)

        before = values.reshape(ROWS, heads, HEAD_DIM) if self.shape.norms_rotated else normed(values)
        turned = self._rotated(before)
        return normed(turned.reshape(ROWS, -1)) if self.shape.norms_rotated else turned

    def _rotated(self, heads: NDArray[Any]) -> NDArray[Any]:
        rotated = self.rows.cosine.shape[1]
        part, half = heads[..., :rotated], rotated // 2
        pairs = self.shape.interleaved
        first, second = (part[..., ::2], part[..., 1::2]) if pairs else (part[..., :half], part[..., half:])
        cosine, sine = (angles[:, None, :half] for angles in (self.rows.cosine, self.rows.sine))
        turned = np.stack((first * cosine - second * sine, second * cosine + first * sine), axis=-1)
        whole = turned if pairs else turned.swapaxes(-1, -2)
        return np.concatenate([whole.reshape(part.shape), heads[..., rotated:]], axis=-1)

    def _norm(self, name: str, x: Float32) -> Float32:
        if name not in self.norms:
            return x
        scaled: Float32 = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + EPSILON) * self.norms[name]
        return scaled


def linear(matrix: Float32) -> LinearLayer:
    outputs, inputs = matrix.shape
    shape = LinearShape(outputs, inputs, "f32")
    return LinearLayer(shape, pack_matrix(shape, matrix))


@pytest.mark.parametrize("isa", compiled_isas())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_layer_gives_what_numpy_gives(case: dict[str, Any], isa: str) -> None:
    layer = Layer(**case)
    program, hidden = layer.program(isa), layer.hidden.copy()
    cache = np.zeros((1, 1, 2, KV_HEADS, ROWS, HEAD_DIM), np.float32)
    routed = program.begin(cache, 0, hidden, layer.rows, threads=1)
    expected, normalised = layer.begin()
    np.testing.assert_allclose(hidden, expected, atol=2e-5)
    np.testing.assert_allclose(routed.hidden_states, normalised, atol=2e-5)
    program.end(hidden, layer.experts, None)
    np.testing.assert_allclose(hidden, layer.end(expected), atol=2e-5)
