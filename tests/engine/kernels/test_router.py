"""The router of a layer program chooses as torch does, also among equal scores."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from control_plane.engine.kernels import LinearLayer
from control_plane.engine.kernels.c_dense import compiled_isas
from control_plane.engine.kernels.layer_parts import LayerShape, LayerWeights, Router, Scores
from control_plane.engine.kernels.layer_program import BatchRows, LayerProgram, Routed
from functions.kernels.arguments import activation_dtype
from functions.kernels.bfloat16 import f32_to_bf16
from functions.kernels.packed_matrix import LinearShape, pack_matrix

HIDDEN, HEAD_DIM, ROWS = 64, 8, 40
SIZES = [(5, 2), (8, 2), (16, 4), (60, 4), (64, 8), (128, 8), (512, 10)]


def linear(matrix: NDArray[Any]) -> LinearLayer:
    outputs, inputs = matrix.shape
    shape = LinearShape(outputs, inputs, activation_dtype(matrix))
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
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("experts", "top_k"), SIZES)
def test_the_choice_is_torchs(experts: int, top_k: int, scores: Scores, normalised: bool, isa: str) -> None:
    random = np.random.default_rng(experts)
    # Rows of 1 and -1 stay so when they are normed, and small integers have equal sums often.
    hidden = random.choice([-1, 1], (ROWS, HIDDEN)).astype(np.float32)
    weight = random.integers(-1, 2, (experts, HIDDEN)).astype(np.float32) / np.float32(4)
    routed = route(
        isa, f32_to_bf16(weight), f32_to_bf16(hidden), top_k=top_k, scores=scores, normalised=normalised
    )

    logits = torch.from_numpy(hidden @ weight.T).bfloat16().float()
    found = logits.sigmoid() if scores == "sigmoid" else logits.softmax(dim=-1)
    values, index = found.topk(top_k)
    assert any(len(set(row)) < experts for row in found.tolist())
    # torch sorts the chosen among themselves in another way; that changes no sum.
    assert (np.sort(routed.index) == np.sort(index.numpy())).all()
    values = values / values.sum(dim=-1, keepdim=True) if normalised else values
    np.testing.assert_allclose(routed.weights, values.bfloat16().float().numpy(), rtol=2**-7)


@pytest.mark.parametrize("isa", compiled_isas())
@pytest.mark.parametrize("choice", [{}, {"scores": "sigmoid"}, {"groups": 6, "chosen_groups": 2}], ids=str)
def test_a_row_of_nan_has_experts_too_and_does_not_change_those_of_others(
    choice: dict[str, Any], isa: str
) -> None:
    random = np.random.default_rng(0)
    hidden = f32_to_bf16(random.standard_normal((ROWS, HIDDEN), np.float32))
    weight = f32_to_bf16(random.standard_normal((60, HIDDEN), np.float32))
    alone = route(isa, weight, hidden, top_k=4, normalised=True, **choice)
    hidden[7] = f32_to_bf16(np.array([np.nan], np.float32))
    routed = route(isa, weight, hidden, top_k=4, normalised=True, **choice)
    assert len(set(routed.index[7].tolist())) == 4
    assert (routed.index[7] >= 0).all()
    assert (routed.index[7] < 60).all()
    assert np.isnan(routed.weights[7]).all()
    others = np.arange(ROWS) != 7
    assert np.array_equal(routed.index[others], alone.index[others])
    assert np.array_equal(routed.weights[others], alone.weights[others])


def chosen(logits: torch.Tensor, router: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts [T, K] and their weights as families of transformers compute them."""
    kind, groups = router["scores"], router["groups"]
    scores = logits.softmax(dim=-1) if kind == "softmax" else logits.sigmoid()
    choice = (logits if kind == "sigmoid_of_chosen" else scores) + torch.from_numpy(router["correction"])
    parts = choice.view(len(choice), groups, -1)
    best = parts.topk(2, dim=-1).values.sum(dim=-1).topk(router["chosen_groups"], dim=-1).indices
    kept = torch.zeros_like(parts, dtype=torch.bool)
    kept[torch.arange(len(choice))[:, None], best] = True
    index = choice.masked_fill(~kept.flatten(1), -torch.inf).topk(router["top_k"], dim=-1).indices
    weights = scores.gather(1, index)
    if router["normalised"]:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return index, weights * router["scale"]


@pytest.mark.parametrize("isa", compiled_isas())
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "sigmoid_of_chosen"])
@pytest.mark.parametrize(("groups", "chosen_groups"), [(1, 1), (8, 3), (4, 4)])
def test_a_router_in_float32_with_corrections_groups_and_a_scale(
    groups: int, chosen_groups: int, scores: Scores, normalised: bool, isa: str
) -> None:
    """Its values and weights are not rounded, though the rows are bfloat16."""
    random = np.random.default_rng(groups)
    hidden = random.choice([-1, 1], (ROWS, HIDDEN)).astype(np.float32)
    weight = random.standard_normal((64, HIDDEN), np.float32) / np.float32(8)
    choice: dict[str, Any] = {
        "top_k": 6,
        "scores": scores,
        "normalised": normalised,
        "scale": 2.5,
        "correction": random.standard_normal(64, np.float32) / np.float32(4),
        "groups": groups,
        "chosen_groups": chosen_groups,
    }
    routed = route(isa, weight, f32_to_bf16(hidden), **choice)
    index, weights = chosen(torch.from_numpy(hidden @ weight.T), choice)
    order, found = index.argsort(dim=-1), routed.index.argsort(axis=-1)
    assert (np.take_along_axis(routed.index, found, 1) == index.gather(1, order).numpy()).all()
    np.testing.assert_allclose(
        np.take_along_axis(routed.weights, found, 1), weights.gather(1, order).numpy(), rtol=1e-5
    )


@pytest.mark.parametrize(
    "choice",
    [
        {"top_k": 61},
        {"top_k": 4, "groups": 7},
        {"top_k": 4, "groups": 60},
        {"top_k": 4, "groups": 6, "chosen_groups": 7},
        {"top_k": 11, "groups": 6, "chosen_groups": 1},
        {"top_k": 4, "scores": "tanh"},
        {"top_k": 4, "correction": np.zeros(59, np.float32)},
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_together_are_refused(choice: dict[str, Any]) -> None:
    weight, hidden = np.zeros((60, HIDDEN), np.uint16), np.zeros((1, HIDDEN), np.uint16)
    with pytest.raises(ValueError, match=r"fit|function|correction"):
        route(compiled_isas()[0], weight, hidden, normalised=True, **choice)
