"""The types that the options of `faasmoe partition` choose."""

import pytest

from control_plane.errors import ConfigError
from control_plane.partition.recipes import (
    DENSE_DTYPES,
    DTYPES,
    DenseTypes,
    ExpertTypes,
    WeightTypes,
    choose_types,
)
from functions.kernels.packed_types import PACKED_TYPES, fits_activations

BF16 = DenseTypes("bf16", "bf16", "bf16", "bf16")


@pytest.mark.parametrize(
    ("dtype", "dense_dtype", "types"),
    [
        ("auto", "auto", WeightTypes("bf16", ExpertTypes("bf16", "bf16"), BF16)),
        (
            "f32",
            "auto",
            WeightTypes("f32", ExpertTypes("f32", "f32"), DenseTypes("f32", "f32", "f32", "f32")),
        ),
        ("int8", "auto", WeightTypes("bf16", ExpertTypes("int8", "int8"), BF16)),
        ("bf16", "int8", WeightTypes("bf16", ExpertTypes("bf16", "bf16"), DenseTypes(*["int8"] * 4))),
    ],
)
def test_the_types_of_a_bf16_checkpoint(dtype: str, dense_dtype: str, types: WeightTypes) -> None:
    assert choose_types(dtype, dense_dtype, "bf16") == types


@pytest.mark.parametrize("source", ["f32", "bf16"])
@pytest.mark.parametrize("dense_dtype", DENSE_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_types_fit_the_activations(dtype: str, dense_dtype: str, source: str) -> None:
    plain, experts, dense = choose_types(dtype, dense_dtype, source)
    for name in (*experts, dense.attention, dense.gate_up, dense.down, dense.head):
        assert fits_activations(name, plain)


def test_int4_is_mostly_of_four_bits() -> None:
    _, experts, dense = choose_types("int4", "int4", "f32")
    for name in (*experts, dense.attention, dense.gate_up):
        assert PACKED_TYPES[name].bits == 4


def test_other_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^dtype must be one of auto, f32, bf16, int8, int4, not 'int3'$"):
        choose_types("int3", "auto", "f32")
    with pytest.raises(ConfigError, match=r"^dense dtype must be one of auto, int8, int4, not 'bf16'$"):
        choose_types("auto", "bf16", "f32")
