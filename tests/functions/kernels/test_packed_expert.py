"""The packed form of experts: its layout, and the loss of precision."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from functions.kernels.bfloat16 import bf16_to_f32, f32_to_bf16
from functions.kernels.packed_expert import ExpertShape, pack_expert, unpack_expert
from functions.kernels.packed_matrix import LinearShape, pack_matrix, unpack_matrix
from functions.kernels.packed_types import PACKED_TYPES

SIZES = [(1, 1), (24, 20), (130, 33), (64, 48)]
DTYPES = list(PACKED_TYPES)

Matrices = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def random_matrices(hidden_size: int, intermediate_size: int) -> Matrices:
    """Random matrices gate [I, H], up [I, H] and down [H, I]."""
    random = np.random.default_rng(0)
    gate, up = random.standard_normal((2, intermediate_size, hidden_size), np.float32)
    return gate, up, random.standard_normal((hidden_size, intermediate_size), np.float32)


def round_trip(shape: ExpertShape, matrices: Matrices) -> Matrices:
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tile_is_a_multiple_of_a_cache_line(dtype: str) -> None:
    shape = ExpertShape(130, 33, dtype, dtype)
    assert shape.gate_up.tile_nbytes % 64 == 0
    assert shape.down.tile_nbytes % 64 == 0


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
