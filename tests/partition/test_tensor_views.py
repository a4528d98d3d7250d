"""Views of tensors read any rows, as values and in packed types, like arrays that were made at once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.checkpoint.tensors.views import (
    changed,
    concatenated,
    interleaved,
    renamed,
    reordered,
    transposed,
)
from functions.kernels.bfloat16 import bf16_to_f32, f32_to_bf16
from functions.kernels.packed_tiles import Quantised

Array = NDArray[Any]


@dataclass(frozen=True)
class ArrayTensor(Tensor):
    """A tensor in memory."""

    values: Array
    kind: str | None = None

    @classmethod
    def of(cls, values: Array, kind: str | None = None) -> "ArrayTensor":
        dtype = "BF16" if values.dtype == np.uint16 else "F32"
        return cls("tensor", Path("file"), dtype, values.shape, values, kind)

    def read(self, start: int, count: int) -> Array:
        return self.values.reshape(-1)[start : start + count]

    @property
    def stored_type(self) -> str | None:
        return self.kind

    def read_quantised(self, first: int, count: int) -> Quantised | None:
        """Codes that are the first column's values, and scales that are the second's."""
        rows = self.rows(first, count)
        return Quantised(rows[:, :1].astype(np.uint8)[:, :, None], rows[:, 1:2].astype(np.float16))


def array(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 200, shape).astype(np.float32)


ONE, OTHER = array(3, 10, 4), array(3, 6, 4, seed=1)
ORDER = np.random.default_rng(2).permutation(10)
CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Array]] = {
    "concatenated": (
        lambda one, other: concatenated("new", [one, other]),
        np.concatenate([ONE, OTHER], axis=1),
    ),
    "interleaved": (
        lambda one, other: interleaved("new", [one, one]),
        np.stack([ONE, ONE], axis=2).reshape(3, 20, 4),
    ),
    "reordered": (lambda one, other: reordered(one, ORDER), ONE[:, ORDER]),
    "changed": (lambda one, other: changed(one, lambda rows: rows + 1), ONE + 1),
    "transposed": (lambda one, other: transposed(one), np.ascontiguousarray(ONE.swapaxes(1, 2))),
    "twice": (lambda one, other: reordered(concatenated("new", [one]), ORDER), ONE[:, ORDER]),
}


@pytest.mark.parametrize("case", CASES)
def test_values(case: str) -> None:
    make, wanted = CASES[case]
    view = make(ArrayTensor.of(ONE), ArrayTensor.of(OTHER))
    assert view.shape == wanted.shape
    flat = wanted.reshape(-1)
    for start in range(0, flat.size, 7):
        for count in (1, 5, 23, flat.size - start):
            part = flat[start : start + count]
            assert np.array_equal(view.read(start, part.size), part)
    assert np.array_equal(np.concatenate(list(view.chunks())), flat)


@pytest.mark.parametrize("case", ["concatenated", "interleaved", "reordered", "twice"])
def test_rows_in_packed_types(case: str) -> None:
    make, wanted = CASES[case]
    view, rows = make(ArrayTensor.of(ONE, "int8"), ArrayTensor.of(OTHER, "int8")), wanted.reshape(-1, 4)
    assert view.stored_type == "int8"
    for first in range(0, len(rows), 5):
        found = view.read_quantised(first, min(9, len(rows) - first))
        assert found is not None
        assert np.array_equal(found.codes[:, 0, 0], rows[first : first + 9, 0])
        assert np.array_equal(found.scales[:, 0], rows[first : first + 9, 1])


def test_tensors_of_several_types() -> None:
    view = concatenated("new", [ArrayTensor.of(ONE, "int4"), ArrayTensor.of(OTHER, "int8")])
    assert view.stored_type == "int8"
    assert view.read_quantised(0, 4) is None
    assert concatenated("new", [ArrayTensor.of(ONE), ArrayTensor.of(OTHER, "int8")]).stored_type is None


def test_bf16_stays_bf16() -> None:
    bits = f32_to_bf16(ONE)
    view = reordered(ArrayTensor.of(bits), ORDER)
    assert view.dtype == "BF16"
    assert np.array_equal(view.read(0, view.size).reshape(view.shape), bits[:, ORDER])
    both = concatenated("new", [ArrayTensor.of(bits), ArrayTensor.of(OTHER)])
    assert both.dtype == "F32"
    wanted = np.concatenate([bf16_to_f32(bits), OTHER], axis=1)
    assert np.array_equal(both.read(0, both.size).reshape(wanted.shape), wanted)


def test_a_transposed_view_is_undone() -> None:
    tensor = ArrayTensor.of(ONE)
    assert transposed(transposed(tensor)) is tensor


def test_names_and_shapes() -> None:
    view = renamed(concatenated("old", [ArrayTensor.of(ONE)]), "new", (30, 4))
    assert (view.name, view.shape) == ("new", (30, 4))
    assert np.array_equal(view.rows(7, 20), ONE.reshape(30, 4)[7:27])


@pytest.mark.parametrize("shape", [(3, 6, 5), (2, 6, 4), (6, 4)])
def test_tensors_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(PartitionError, match=r"tensor is \["):
        concatenated("new", [ArrayTensor.of(ONE), ArrayTensor.of(array(*shape))])
