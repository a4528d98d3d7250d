"""The packed form of matrices: its layout, its precision and its checks."""

import numpy as np
import pytest
from numpy.typing import NDArray

from functions.kernels.bfloat16 import bf16_to_f32, f32_to_bf16
from functions.kernels.packed_matrix import LinearShape, pack_matrix, quantised_matrix, unpack_matrix
from functions.kernels.packed_types import PACKED_TYPES
from tests.support.functions.kernels import QUANTISED

SIZES = [(70, 130), (1, 1), (33, 300), (32, 256)]
ERROR = {"int8": 0.006, "int4": 0.09, "int4_nl": 0.08, "mxfp4": 0.12, "int4_min": 0.08}
"""Largest allowed error of normally distributed weights, as a share of their root mean square."""


def random_matrix(outputs: int, inputs: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((outputs, inputs), np.float32)


def round_trip(matrix: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    outputs, inputs = matrix.shape
    shape = LinearShape(outputs, inputs, dtype)
    packed = pack_matrix(shape, matrix)
    assert packed.shape == (shape.nbytes,)
    return unpack_matrix(shape, packed)


def code(packed: NDArray[np.uint8], shape: LinearShape, row: int, value: int) -> float:
    """A weight, read from the packed bytes as the description says."""
    kind = shape.type
    group, place = divmod(value, 32)
    tile = packed[row // 32 * shape.tile_nbytes :]
    headers = 0 if kind.header is None else 128 * (group // 8 + 1)
    at = headers + group * kind.group.itemsize
    row %= 32
    nbytes = 1024 if kind.bits == 8 else 512
    step, byte = divmod(place, 4)
    if kind.bits == 8:
        stored = int(tile[at + step * 128 + row * 4 + byte])
    else:
        both = int(tile[at + step // 2 * 128 + row * 4 + byte])
        stored = both >> 4 if step % 2 else both & 15
    scales = tile[at + nbytes :]
    if kind.header is None:
        (half,) = scales[2 * row : 2 * row + 2].view(np.uint16)
        scale = bf16_to_f32(half[None])[0] if kind.name == "mxfp4" else half[None].view(np.float16)[0]
        return float(scale) * kind.values[stored]
    header = tile[at - group % 8 * kind.group.itemsize - 128 :][:128].copy().view(np.float16)
    scale, minimum = float(scales[row]), float(scales[32 + row])
    return float(header[row]) * scale * kind.values[stored] - float(header[32 + row]) * minimum


@pytest.mark.parametrize("dtype", QUANTISED)
def test_the_bytes_are_where_the_description_says(dtype: str) -> None:
    matrix = random_matrix(70, 600)
    shape = LinearShape(70, 600, dtype)
    packed = pack_matrix(shape, matrix)
    unpacked = unpack_matrix(shape, packed)
    for row, value in np.random.default_rng(1).integers((70, 600), size=(100, 2)).tolist():
        assert code(packed, shape, row, value) == pytest.approx(unpacked[row, value], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", QUANTISED)
@pytest.mark.parametrize("size", SIZES[:1] + SIZES[2:])
def test_errors_are_small(dtype: str, size: tuple[int, int]) -> None:
    matrix = random_matrix(*size)
    error = round_trip(matrix, dtype) - matrix
    assert np.sqrt((error**2).mean()) < ERROR[dtype]


@pytest.mark.parametrize("size", SIZES)
def test_int8_is_within_half_a_step_of_its_group(size: tuple[int, int]) -> None:
    matrix = random_matrix(*size)
    found = round_trip(matrix, "int8")
    for start in range(0, size[1], 32):
        group = matrix[:, start : start + 32]
        # Half a step, and the rounding of the scale to 11 bits.
        step = np.abs(group).max(axis=1, keepdims=True) / 127
        assert (np.abs(found[:, start : start + 32] - group) <= step * 0.57).all()


@pytest.mark.parametrize("dtype", QUANTISED)
def test_what_was_packed_once_packs_without_loss(dtype: str) -> None:
    """Formats with the same codes and scales convert without loss, where each group has its largest code."""
    once = round_trip(random_matrix(64, 256), dtype)
    again = round_trip(once, dtype)
    assert np.abs(again - once).max() < 0.02 * np.abs(once).max()


@pytest.mark.parametrize("dtype", QUANTISED)
@pytest.mark.parametrize("value", [0, 1e-44, 1e-12])
def test_tiny_weights_become_zeros(dtype: str, value: float) -> None:
    matrix = random_matrix(40, 96)
    matrix[3, 32:64] = value
    found = round_trip(matrix, dtype)
    assert np.abs(found[3, 32:64]).max() <= value
    assert found[3, :32].any()
    assert found[4, 32:64].any()


@pytest.mark.parametrize("dtype", QUANTISED)
def test_padding_is_zero(dtype: str) -> None:
    """Rows that fill a tile count nothing; inputs that fill a group count only with their activations."""
    shape = LinearShape(33, 40, dtype)
    whole = LinearShape(64, 40, dtype)
    packed = pack_matrix(shape, random_matrix(33, 40))
    assert packed.size == whole.nbytes
    assert not quantised_matrix(whole, packed).scales[33:].any()


def test_bf16_bits_pack_like_their_floats() -> None:
    bits = f32_to_bf16(random_matrix(70, 130))
    for dtype in PACKED_TYPES:
        shape = LinearShape(70, 130, dtype)
        np.testing.assert_array_equal(pack_matrix(shape, bits), pack_matrix(shape, bf16_to_f32(bits)))


@pytest.mark.parametrize(
    ("dtype", "bits"), [("int8", 8.5), ("int4", 4.5), ("int4_nl", 4.5), ("int4_min", 4.625)]
)
def test_bits_of_a_weight(dtype: str, bits: float) -> None:
    assert LinearShape(64, 2048, dtype).nbytes * 8 == bits * 64 * 2048


@pytest.mark.parametrize("dtype", QUANTISED)
def test_weights_that_are_too_large_are_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="weights above 65504 cannot be quantised"):
        pack_matrix(LinearShape(1, 2, dtype), np.array([[1, -7e4]], np.float32))


@pytest.mark.parametrize(("outputs", "inputs", "dtype"), [(0, 4, "f32"), (4, 0, "f32"), (4, 4, "int3")])
def test_an_invalid_shape_is_refused(outputs: int, inputs: int, dtype: str) -> None:
    with pytest.raises(ValueError, match=r"positive|int3"):
        LinearShape(outputs, inputs, dtype)


@pytest.mark.parametrize("dtype", PACKED_TYPES)
def test_a_wrong_number_of_bytes_is_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="bytes"):
        unpack_matrix(LinearShape(70, 130, dtype), np.zeros(5, np.uint8))
