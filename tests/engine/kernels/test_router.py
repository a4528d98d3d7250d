"""The router of a layer program chooses as torch does, also among equal scores."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from control_plane.engine.kernels import LinearLayer
from control_plane.engine.kernels.c_dense import compiled_isas
from control_plane.engine.kernels.layer_program import (
    BatchRows,
    LayerProgram,
    LayerShape,
    LayerWeights,
    Routed,
    Router,
)
from functions.kernels.bfloat16 import f32_to_bf16
from functions.kernels.packed_matrix import LinearShape, pack_matrix

HIDDEN, HEAD_DIM, ROWS = 64, 8, 40
SIZES = [(5, 2), (8, 2), (16, 4), (60, 4), (64, 8), (128, 8), (512, 10)]


def linear(matrix: NDArray[Any]) -> LinearLayer:
    outputs, inputs = matrix.shape
    shape = LinearShape(outputs, inputs, "bf16")
    return LinearLayer(shape, pack_matrix(shape, matrix))


def route(isa: str, weight: NDArray[Any], hidden: NDArray[Any], **choice: Any) -> Routed:
    """What a layer makes of rows of as many sequences, whose attention adds nothing."""
    ones = f32_to_bf16(np.ones(HIDDEN, np.float32))
    narrow = linear(np.zeros((HEAD_DIM, HIDDEN), np.uint16))
    weights = LayerWeights(
        input_norm=ones,
        ffn_norm=ones,
        query=narrow,
        key=narrow,
        value=narrow,
        output=linear(np.zeros((HIDDEN, HEAD_DIM), np.uint16)),
        router=Router(linear(weight), **choice),
    )
    program = LayerProgram(isa, LayerShape(HIDDEN, 1, 1, HEAD_DIM, epsilon=1e-6), weights, "bf16")
    cache = np.zeros((len(hidden), 1, 2, 1, 1, HEAD_DIM), np.uint16)
    angles = np.zeros((len(hidden), HEAD_DIM), np.uint16)
    rows = BatchRows(np.arange(len(hidden)), np.zeros(len(hidden), np.int64), angles, angles)
    return program.begin(cache, 0, hidden.copy(), rows, threads=1)


@pytest.mark.parametrize("isa", compiled_isas())
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize(("experts", "top_k"), SIZES)
def test_the_choice_is_torchs(experts: int, top_k: int, sigmoid: bool, normalised: bool, isa: str) -> None:
    random = np.random.default_rng(experts)
    # Rows of 1 and -1 stay so when they are normed, and small integers have equal sums often.
    hidden = random.choice([-1, 1], (ROWS, HIDDEN)).astype(np.float32)
    weight = random.integers(-1, 2, (experts, HIDDEN)).astype(np.float32) / np.float32(4)
    routed = route(
        isa, f32_to_bf16(weight), f32_to_bf16(hidden), top_k=top_k, sigmoid=sigmoid, normalised=normalised
    )

    logits = torch.from_numpy(hidden @ weight.T).bfloat16().float()
    scores = logits.sigmoid() if sigmoid else logits.softmax(dim=-1)
    values, index = scores.topk(top_k)
    assert any(len(set(row)) < experts for row in scores.tolist())
    # torch sorts the chosen among themselves in another way; that changes no sum.
    assert (np.sort(routed.index) == np.sort(index.numpy())).all()
    values = values / values.sum(dim=-1, keepdim=True) if normalised else values
    np.testing.assert_allclose(routed.weights, values.bfloat16().float().numpy(), rtol=2**-7)


@pytest.mark.parametrize("isa", compiled_isas())
@pytest.mark.parametrize("sigmoid", [True, False])
def test_a_row_of_nan_has_experts_too_and_does_not_change_those_of_others(sigmoid: bool, isa: str) -> None:
    random = np.random.default_rng(0)
    hidden = f32_to_bf16(random.standard_normal((ROWS, HIDDEN), np.float32))
    weight = f32_to_bf16(random.standard_normal((60, HIDDEN), np.float32))
    alone = route(isa, weight, hidden, top_k=4, sigmoid=sigmoid, normalised=True)
    hidden[7] = f32_to_bf16(np.array([np.nan], np.float32))
    routed = route(isa, weight, hidden, top_k=4, sigmoid=sigmoid, normalised=True)
    assert len(set(routed.index[7].tolist())) == 4
    assert (routed.index[7] >= 0).all()
    assert (routed.index[7] < 60).all()
    assert np.isnan(routed.weights[7]).all()
    others = np.arange(ROWS) != 7
    assert np.array_equal(routed.index[others], alone.index[others])
    assert np.array_equal(routed.weights[others], alone.weights[others])
