"""A row of a long chunk attends as it does alone, whatever the parts and groups of the attention kernel."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from control_plane.engine.kernels import LinearLayer
from control_plane.engine.kernels.c_dense import compiled_isas
from control_plane.engine.kernels.layer_parts import LayerShape, LayerWeights
from control_plane.engine.kernels.layer_program import BatchRows, LayerProgram
from functions.kernels.arguments import activation_dtype
from functions.kernels.bfloat16 import f32_to_bf16
from functions.kernels.packed_matrix import LinearShape, pack_matrix

HIDDEN, TOKENS = 24, 90
CHUNKS = ([TOKENS], [37, 53], [1] * TOKENS)


@pytest.mark.parametrize("isa", compiled_isas())
@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("sizes", [(2, 2, 128), (6, 2, 72), (5, 1, 38)], ids=str)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_chunks_do_not_change_a_row(
    dtype: str, sizes: tuple[int, int, int], window: int | None, isa: str
) -> None:
    random = np.random.default_rng(0)
    heads, kv_heads, head_dim = sizes

    def normal(*shape: int) -> NDArray[Any]:
        values = random.standard_normal(shape, np.float32)
        return f32_to_bf16(values) if dtype == "bf16" else values

    def linear(outputs: int, inputs: int) -> LinearLayer:
        shape = LinearShape(outputs, inputs, activation_dtype(normal(1)))
        return LinearLayer(shape, pack_matrix(shape, normal(outputs, inputs)))

    weights = LayerWeights(
        input_norm=normal(HIDDEN),
        ffn_norm=normal(HIDDEN),
        query=linear(heads * head_dim, HIDDEN),
        key=linear(kv_heads * head_dim, HIDDEN),
        value=linear(kv_heads * head_dim, HIDDEN),
        output=linear(HIDDEN, heads * head_dim),
    )
    program = LayerProgram(isa, LayerShape(HIDDEN, *sizes, epsilon=1e-6, window=window), weights, dtype)
    hidden, cosine, sine = normal(TOKENS, HIDDEN), normal(TOKENS, head_dim), normal(TOKENS, head_dim)

    def attended(chunks: list[int], threads: int) -> NDArray[Any]:
        cache, out, start = normal(1, 1, 2, kv_heads, TOKENS, head_dim), hidden.copy(), 0
        for rows in chunks:
            span = slice(start, start + rows)
            batch = BatchRows(np.zeros(rows, np.int64), np.arange(TOKENS)[span], cosine[span], sine[span])
            program.begin(cache, 0, out[span], batch, threads)
            start += rows
        return out

    alone = attended(CHUNKS[-1], threads=1)
    for chunks in CHUNKS[:-1]:
        assert np.array_equal(attended(chunks, threads=3), alone)
