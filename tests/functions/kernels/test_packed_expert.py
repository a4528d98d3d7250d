"""The packed form of experts: its layout, and the loss of precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from functions.kernels.activation import SWIGLU, Activation
from functions.kernels.bfloat16 import bf16_to_f32, f32_to_bf16
from functions.kernels.packed_expert import Biases, ExpertShape, pack_expert, unpack_expert
from functions.kernels.packed_matrix import LinearShape, pack_matrix, unpack_matrix
from functions.kernels.packed_types import PACKED_TYPES

SIZES = [(1, 1), (24, 20), (130, 33), (64, 48)]
DTYPES = list(PACKED_TYPES)
UNGATED = Activation("relu2", gated=False)

Matrices = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def random_matrices(hidden_size: int, intermediate_size: int) -> Matrices:
    """Random matrices gate [I, H], up [I, H] and down [H, I]."""
    random = np.random.default_rng(0)
    gate, up = random.standard_normal((2, intermediate_size, hidden_size), np.float32)
    return gate, up, random.standard_normal((hidden_size, intermediate_size), np.float32)


def round_trip(shape: ExpertShape, matrices: Matrices) -> tuple[NDArray[np.float32], ...]:
    packed = pack_expert(shape, *matrices)
    assert packed.shape == (shape.nbytes,)
    return unpack_expert(shape, packed)


@pytest.mark.parametrize("size", SIZES)
def test_f32_is_stored_exactly(size: tuple[int, int]) -> None:
    matrices = random_matrices(*size)
    for found, matrix in zip(round_trip(ExpertShape(*size, "f32", "f32"), matrices), matrices, strict=True):
        np.testing.assert_array_equal(found, matrix)


@pytest.mark.parametrize("size", SIZES)
def test_bf16_is_rounded_to_bf16(size: tuple[int, int]) -> None:
    matrices = random_matrices(*size)
    for found, matrix in zip(round_trip(ExpertShape(*size, "bf16", "bf16"), matrices), matrices, strict=True):
        np.testing.assert_array_equal(found, torch.from_numpy(matrix).bfloat16().float().numpy())


@pytest.mark.parametrize("types", [("int8", "int4_min"), ("bf16", "int8"), ("mxfp4", "f32")], ids="/".join)
def test_gate_up_and_down_may_have_different_types(types: tuple[str, str]) -> None:
    matrices = random_matrices(130, 33)
    found = round_trip(ExpertShape(130, 33, *types), matrices)
    for matrix, expected, dtype in zip(found, matrices, (types[0], *types), strict=True):
        outputs, inputs = expected.shape
        alone = LinearShape(outputs, inputs, dtype)
        np.testing.assert_array_equal(matrix, unpack_matrix(alone, pack_matrix(alone, expected)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bf16_bits_pack_like_their_floats(dtype: str) -> None:
    bits = [f32_to_bf16(matrix) for matrix in random_matrices(24, 20)]
    shape = ExpertShape(24, 20, dtype, dtype)
    gate, up, down = bits
    packed = pack_expert(shape, bf16_to_f32(gate), bf16_to_f32(up), bf16_to_f32(down))
    np.testing.assert_array_equal(pack_expert(shape, gate, up, down), packed)


def test_a_step_holds_four_bytes_of_sixteen_gate_rows_then_of_the_same_up_rows() -> None:
    shape = ExpertShape(6, 32, "bf16", "bf16")
    gate, up, down = random_matrices(6, 32)
    packed = pack_expert(shape, gate, up, down).view(np.uint16)
    gate_up = packed[: 2 * 3 * 32 * 2].reshape(2, 3, 32, 2)  # tiles, steps, rows, values of a step
    np.testing.assert_array_equal(gate_up[1, 2, 5], f32_to_bf16(gate)[16 + 5, 4:6])
    np.testing.assert_array_equal(gate_up[1, 2, 16 + 5], f32_to_bf16(up)[16 + 5, 4:6])
    down_tiles = packed[gate_up.size :].reshape(1, 16, 32, 2)
    np.testing.assert_array_equal(down_tiles[0, 7, 3], f32_to_bf16(down)[3, 14:16])
    assert not down_tiles[0, :, 6:].any()


def test_without_a_gate_a_step_holds_thirty_two_up_rows() -> None:
    shape = ExpertShape(6, 40, "bf16", "bf16", UNGATED)
    _, up, down = random_matrices(6, 40)
    packed = pack_expert(shape, None, up, down)
    tiles = packed.view(np.uint16)[: 2 * 3 * 32 * 2].reshape(2, 3, 32, 2)
    np.testing.assert_array_equal(tiles[1, 2, 5], f32_to_bf16(up)[32 + 5, 4:6])
    assert not tiles[1, :, 8:].any()
    found = unpack_expert(shape, packed)
    for matrix, expected in zip(found, (up, down), strict=True):
        np.testing.assert_array_equal(matrix, bf16_to_f32(f32_to_bf16(expected)))


@pytest.mark.parametrize("activation", [SWIGLU, UNGATED], ids=["gated", "not gated"])
@pytest.mark.parametrize("as_bits", [False, True])
def test_biases_follow_the_matrices_in_the_order_of_the_rows_of_tiles(
    activation: Activation, as_bits: bool
) -> None:
    shape = ExpertShape(40, 20, "int8", "int4_min", activation, has_bias=True)
    gate, up, down = random_matrices(40, 20)
    first, second, third = (np.arange(size, dtype=np.float32) + 1 for size in (20, 20, 40))
    biases = [f32_to_bf16(each) if as_bits else each for each in (first, -second, third)]
    if activation.gated:
        packed = pack_expert(shape, gate, up, down, biases=Biases(*biases))
    else:
        packed = pack_expert(shape, None, up, down, biases=Biases(None, *biases[1:]))
    without = replace(shape, has_bias=False)
    np.testing.assert_array_equal(
        packed[: without.nbytes], pack_expert(without, gate if activation.gated else None, up, down)
    )
    inward, outward = np.split(packed[without.nbytes :].view(np.float32), [shape.gate_up.tiles * 32])
    if activation.gated:
        inward = inward.reshape(2, 2, 16)
        np.testing.assert_array_equal(inward[:, 0].ravel()[:20], first)
        np.testing.assert_array_equal(inward[:, 1].ravel()[:20], -second)
        assert not inward.swapaxes(0, 1).reshape(2, 32)[:, 20:].any()
    else:
        np.testing.assert_array_equal(inward, np.pad(-second, (0, 12)))
    np.testing.assert_array_equal(outward, np.pad(third, (0, 24)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tile_is_a_multiple_of_a_cache_line(dtype: str) -> None:
    shape = ExpertShape(130, 33, dtype, dtype)
    assert shape.gate_up.tile_nbytes % 64 == 0
    assert shape.down.tile_nbytes % 64 == 0
    assert replace(shape, has_bias=True).nbytes % 64 == 0


def test_an_expert_has_what_its_shape_says() -> None:
    gate, up, down = random_matrices(24, 20)
    inward, outward = np.ones(20, np.float32), np.ones(24, np.float32)
    biased, ungated = (ExpertShape(24, 20, "f32", "f32", *more) for more in ((SWIGLU, True), (UNGATED, True)))
    for shape, first, biases in (
        (replace(biased, has_bias=False), None, None),
        (replace(biased, has_bias=False), gate, Biases(inward, inward, outward)),
        (biased, gate, None),
        (biased, gate, Biases(None, inward, outward)),
        (ungated, gate, Biases(None, inward, outward)),
        (ungated, None, Biases(inward, inward, outward)),
    ):
        with pytest.raises(ValueError, match="an expert has a"):
            pack_expert(shape, first, up, down, biases=biases)
    with pytest.raises(ValueError, match="the bias of down must have shape"):
        pack_expert(biased, gate, up, down, biases=Biases(inward, inward, inward))
    with pytest.raises(ValueError, match="the bias of up must be float32"):
        pack_expert(biased, gate, up, down, biases=Biases(inward, np.ones(20), outward))
    with pytest.raises(ValueError, match="biases are not finite"):
        pack_expert(biased, gate, up, down, biases=Biases(inward * np.nan, inward, outward))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("as_bits", [False, True])
def test_weights_that_are_not_finite_are_refused(dtype: str, bad: float, as_bits: bool) -> None:
    matrices = random_matrices(24, 20)
    matrices[1][7, 3] = bad
    given = [f32_to_bf16(matrix) for matrix in matrices] if as_bits else matrices
    with pytest.raises(ValueError, match="not finite"):
        pack_expert(ExpertShape(24, 20, dtype, dtype), *given)


def test_a_wrong_shape_or_dtype_is_refused() -> None:
    gate, up, down = random_matrices(24, 20)
    shape = ExpertShape(24, 20, "f32", "f32")
    with pytest.raises(ValueError, match="down must have shape"):
        pack_expert(shape, gate, up, down.T)
    with pytest.raises(ValueError, match="gate must be float32"):
        pack_expert(shape, gate.astype(np.float64), up, down)
    with pytest.raises(ValueError, match="bytes"):
        unpack_expert(shape, pack_expert(shape, gate, up, down)[:-1])
    with pytest.raises(ValueError, match="int3"):
        ExpertShape(24, 20, "int4", "int3")
    with pytest.raises(ValueError, match="positive"):
        ExpertShape(0, 20, "f32", "f32")


def test_bf16_rounds_like_torch() -> None:
    random = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    ties = (np.arange(2**16, dtype=np.uint32) << 16) + 0x8000
    values = np.concatenate([random, ties]).view(np.float32)
    found, expected = f32_to_bf16(values), torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    is_nan = np.isnan(values)
    np.testing.assert_array_equal(found[~is_nan], expected[~is_nan])
    assert np.isnan(bf16_to_f32(found[is_nan])).all()
    np.testing.assert_array_equal(f32_to_bf16(bf16_to_f32(expected[~is_nan])), expected[~is_nan])
