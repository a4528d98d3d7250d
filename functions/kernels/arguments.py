"""Checks of the arrays that the kernels take."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .packed_types import fits_activations

MAX_THREADS = 64
"""The most threads for one call of a kernel."""

_ACTIVATION_DTYPES = {np.dtype(np.float32): "f32", np.dtype(np.uint16): "bf16"}


def activation_dtype(array: NDArray[Any]) -> str:
    """The dtype's name: "f32", or "bf16" for the bits in uint16. Raises ValueError for another dtype."""
    dtype = _ACTIVATION_DTYPES.get(array.dtype)
    if dtype is None:
        raise ValueError(f"activations must be float32 or the uint16 bits of bfloat16, not {array.dtype}")
    return dtype


def check_activations(name: str, activations: NDArray[Any], weight_dtype: str) -> None:
    """Raise ValueError unless the activations have the weights' dtype, or any for quantised weights."""
    dtype = _ACTIVATION_DTYPES.get(activations.dtype)
    if dtype is None or not fits_activations(weight_dtype, dtype):
        raise ValueError(f"{name} of dtype {activations.dtype} do not fit {weight_dtype} weights")


def check_shape(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the array has this shape."""
    if array.shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, not {list(array.shape)}")


def c_array(name: str, array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """The array, contiguous and aligned as C reads it: a copy only if necessary.

    Raises ValueError for another dtype.
    """
    if array.dtype != dtype:
        raise ValueError(f"{name} must be {np.dtype(dtype)}, not {array.dtype}")
    flags = array.flags
    # numpy.require alone would take longer than a small call.
    if flags.c_contiguous and flags.aligned:
        return array
    return np.require(array, requirements=["C", "A"])
