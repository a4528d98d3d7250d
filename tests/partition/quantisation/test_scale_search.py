"""The search for scales in C equals the one in NumPy to the last bit, and beats plain rounding."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from control_plane.partition.quantisation.scale_search import (
    CScaleSearch,
    NumpyScaleSearch,
    ScaleSearch,
    load_scale_search,
)
from functions.kernels.bfloat16 import Float32
from functions.kernels.packed_matrix import LinearShape, pack_matrix, unpack_matrix
from functions.kernels.packed_types import PACKED_TYPES
from functions.kernels.quantisation import Quantiser, quantise

TYPES = ["int4", "int4_min"]
SEARCHES = [CScaleSearch(), NumpyScaleSearch()]


def heavy_tailed(rows: int, groups: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_t(4, (rows, groups, 32)).astype(np.float32)


def importance_of(groups: int, seed: int = 1) -> Float32:
    return np.exp(2 * np.random.default_rng(seed).normal(size=(groups, 32))).astype(np.float32)


def special(rows: int, groups: int) -> Float32:
    """Rows of zeros, of one value, all above zero, all below, tiny, and as large as can be."""
    weights = heavy_tailed(rows, groups)
    weights[0] = 0
    weights[1] = 0.25
    weights[2] = np.abs(weights[2]) + 1
    weights[3] = -np.abs(weights[3]) - 1
    weights[4] *= 1e-9
    weights[5] *= 60000 / np.abs(weights[5]).max()
    weights[6, :, 1:] = 0
    return weights


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("make", [heavy_tailed, special])
@pytest.mark.parametrize("rows", [16, 37])
def test_c_equals_numpy(kind: str, make: Callable[[int, int], Float32], rows: int) -> None:
    weights, importance = make(rows, 9), importance_of(9)
    importance[4] = 0
    found, expected = (search.quantise(PACKED_TYPES[kind], weights, importance) for search in SEARCHES)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", TYPES)
def test_the_search_lowers_the_weighted_error(kind: str) -> None:
    weights, importance = heavy_tailed(64, 8), importance_of(8)
    plain, searched = (error(kind, weights, importance, each) for each in (quantise, CScaleSearch().quantise))
    assert searched < 0.97 * plain


@pytest.mark.parametrize("kind", TYPES)
def test_errors_of_important_inputs_are_smaller(kind: str) -> None:
    weights, alike = heavy_tailed(64, 8), np.ones((8, 32), np.float32)
    important = np.where(np.arange(32) % 4 == 0, alike, 0)
    plain, weighted = (
        squared_error(kind, weights, important, given) for given in (alike, 100 * important + alike)
    )
    assert weighted < 0.9 * plain


@pytest.mark.parametrize("kind", TYPES)
def test_weights_on_a_grid_come_back(kind: str) -> None:
    random = np.random.default_rng(0)
    codes = random.integers(0, 16, (32, 8, 32))
    codes[:, :, :2] = 0, 15
    shift = 8 if kind == "int4" else 5
    weights = ((codes - shift) * 0.125).astype(np.float32)
    assert error(kind, weights, np.ones((8, 32), np.float32), CScaleSearch().quantise) < 1e-6


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("kind", ["int8", "int4_nl", "mxfp4"])
def test_other_types_are_not_searched(search: ScaleSearch, kind: str) -> None:
    weights, importance = heavy_tailed(4, 2), importance_of(2)
    found = search.quantise(PACKED_TYPES[kind], weights, importance)
    expected = quantise(PACKED_TYPES[kind], weights, importance)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scales, expected.scales)


def test_the_extension_is_built() -> None:
    assert isinstance(load_scale_search(), CScaleSearch)


def squared_error(kind: str, weights: Float32, counted: Float32, given: Float32) -> float:
    """The error as below, of weights whose search was given another importance than the one that counts."""
    return error(kind, weights, counted, lambda kind, weights, _: SEARCHES[0].quantise(kind, weights, given))


def error(kind: str, weights: Float32, importance: Float32, quantiser: Quantiser) -> float:
    """The weighted squared error of packed weights, as a share of the weighted squares."""
    matrix: NDArray[np.float32] = weights.reshape(len(weights), -1)
    shape = LinearShape(len(matrix), matrix.shape[1], kind)
    back = unpack_matrix(shape, pack_matrix(shape, matrix, importance.ravel(), quantiser))
    return float(((back - matrix) ** 2 * importance.ravel()).sum() / (matrix**2 * importance.ravel()).sum())
