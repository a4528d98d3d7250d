"""The packed form of matrices: its precision and its checks."""

import numpy as np
import pytest

from functions.kernels.bfloat16 import bf16_to_f32, f32_to_bf16
from functions.kernels.packed_matrix import LinearShape, pack_matrix, unpack_matrix


def test_an_int8_matrix_is_within_half_a_step_of_its_row() -> None:
    matrix = np.random.default_rng(0).standard_normal((70, 130), np.float32)
    shape = LinearShape(70, 130, "int8")
    found = unpack_matrix(shape, pack_matrix(shape, matrix))
    step = np.abs(matrix).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - matrix) <= step * 0.5001).all()
    with pytest.raises(ValueError, match="bytes"):
        unpack_matrix(shape, np.zeros(5, np.uint8))


def test_bf16_bits_pack_like_their_floats() -> None:
    bits = f32_to_bf16(np.random.default_rng(0).standard_normal((70, 130), np.float32))
    for dtype in ("f32", "bf16", "int8"):
        shape = LinearShape(70, 130, dtype)
        np.testing.assert_array_equal(pack_matrix(shape, bits), pack_matrix(shape, bf16_to_f32(bits)))


@pytest.mark.parametrize(("outputs", "inputs", "dtype"), [(0, 4, "f32"), (4, 0, "f32"), (4, 4, "int4")])
def test_an_invalid_shape_is_refused(outputs: int, inputs: int, dtype: str) -> None:
    with pytest.raises(ValueError, match=r"positive|int4"):
        LinearShape(outputs, inputs, dtype)
