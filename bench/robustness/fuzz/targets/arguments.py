"""Random arguments for the compute kernels, in part wrong ones."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.robustness.fuzz.support.target import Target

SIZES = (1, 2, 3, 4, 7, 15, 16, 17, 31, 32, 33, 64, 65, 127, 128, 129, 130)
ROWS = (0, 1, 2, 5, 6, 7, 8, 9, 17)
PAIRS = (("f32", np.float32), ("bf16", np.uint16), ("int8", np.float32), ("int8", np.uint16))
"""Dtypes of weights, each with one of activations that fits."""
FAULTS = 0.15
"""The share of arrays that get a wrong dtype or size, or an index out of range."""
_DTYPES: Sequence[Any] = (np.float32, np.uint16, np.uint8, np.int16, np.int64, np.float64, ">f4", bool)
_REFUSALS = (ValueError, TypeError, BufferError, MemoryError, OverflowError)


class Arguments:
    """Random arguments of one call."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self._numbers = np.random.default_rng(random.getrandbits(64))

    def choice(self, values: Sequence[Any]) -> Any:
        return self.random.choice(values)

    def threads(self) -> int:
        return int(
            self.choice((1, 1, 2, 64, 0, 65, -1)) if self.random.random() < 0.1 else self.choice((1, 2))
        )

    def array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array of random bits, so that floats may be NaN or huge; its memory is often laid out oddly."""
        if self.random.random() < FAULTS / 3:
            shape = tuple(max(0, size + self.choice((-1, 0, 1))) for size in shape)
        if self.random.random() < FAULTS / 3:
            dtype = self.choice(_DTYPES)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._laid_out(self._numbers.bytes(size), shape, np.dtype(dtype))

    def indices(self, shape: tuple[int, ...], dtype: Any, end: int) -> NDArray[Any]:
        """Indices from 0 to `end`, among them a few out of range."""
        values = self._numbers.integers(0, max(1, end), shape)
        if values.size and self.random.random() < FAULTS:
            values.flat[self.random.randrange(values.size)] = self.choice(
                (-1, -2, end, end + 1, 32767, -32768)
            )
        return self._laid_out(values.astype(dtype).tobytes(), shape, np.dtype(dtype))

    def _laid_out(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The array contiguous, or not aligned, or with strides, or in another order."""
        kind = self.random.randrange(6)
        # A byte before the data, so that it begins at an odd address.
        shift = int(kind == 0)
        array = np.frombuffer(bytearray(shift) + bytearray(data), np.uint8)[shift:].view(dtype).reshape(shape)
        if kind == 1 and array.ndim > 1:
            return np.asfortranarray(array)
        if kind == 2 and array.ndim:
            return np.repeat(array, 2, axis=-1)[..., ::2]
        return array


def target_of(call: Callable[[Arguments], None]) -> Target:
    """A target whose inputs are the seeds of the arguments of `call`."""

    def run(data: bytes) -> bool:
        try:
            with np.errstate(all="ignore"):
                call(Arguments(Random(data)))
        except _REFUSALS:
            return False
        return True

    return Target(lambda random: random.randbytes(8), run)
