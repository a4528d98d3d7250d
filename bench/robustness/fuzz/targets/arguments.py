"""Random arguments for the compute kernels, in part wrong ones."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.robustness.fuzz.support.target import Target
from functions.kernels import Activation, ExpertShape
from functions.kernels.activation import FUNCTIONS
from functions.kernels.packed_types import PACKED_TYPES, fits_activations

SIZES = (1, 2, 3, 4, 7, 15, 16, 17, 31, 32, 33, 64, 65, 127, 128, 129, 130)
ROWS = (0, 1, 2, 5, 6, 7, 8, 9, 17)
PAIRS = tuple(
    (name, dtype)
    for name in PACKED_TYPES
    for dtype, activations in ((np.float32, "f32"), (np.uint16, "bf16"))
    if fits_activations(name, activations)
)
"""Types of weights, each with a dtype of activations that fits."""
_DTYPES: Sequence[Any] = (np.float32, np.uint16, np.uint8, np.int16, np.int64, np.float64, ">f4", bool)
_REFUSALS = (ValueError, TypeError, BufferError, MemoryError, OverflowError)


class Arguments:
    """Random arguments of one call."""

    def __init__(self, random: Random, odd_layouts: float, faults: float) -> None:
        """The shares of arrays that are laid out oddly in memory, and of those that are wrong."""
        self.random = random
        self._odd_layouts = odd_layouts
        self._faults = faults
        self._numbers = np.random.default_rng(random.getrandbits(64))

    def choice(self, values: Sequence[Any]) -> Any:
        return self.random.choice(values)

    def is_wrong(self) -> bool:
        """Whether the next argument is to be one that does not fit."""
        return self.random.random() < self._faults

    def expert_shape(self, hidden_size: int, intermediate_size: int, *dtypes: str) -> ExpertShape:
        """A shape of these sizes and types, with any activation, with biases or without."""
        function, gated = self.choice(FUNCTIONS), self.choice((True, True, False))
        limit = self.choice((None, 7.0, 0.5, 1e-30, 3e38)) if gated else None
        alpha = self.choice((1.0, 1.702, -3e38)) if function == "silu" else 1.0
        up_offset = self.choice((0.0, 1.0, -3e38)) if gated else 0.0
        activation, has_bias = (
            Activation(function, gated, limit, alpha, up_offset),
            self.choice((False, True)),
        )
        gate_up, down = dtypes
        return ExpertShape(hidden_size, intermediate_size, gate_up, down, activation, has_bias)

    def threads(self) -> int:
        return int(self.choice((0, 65, -1) if self.is_wrong() else (1, 1, 2, 64)))

    def array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array of random bits, so that floats may be NaN or huge."""
        if self.is_wrong():
            shape = tuple(max(0, size + self.choice((-1, 0, 1))) for size in shape)
        if self.is_wrong():
            dtype = self.choice(_DTYPES)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._laid_out(self._numbers.bytes(size), shape, np.dtype(dtype))

    def indices(self, shape: tuple[int, ...], dtype: Any, end: int) -> NDArray[Any]:
        """Indices from 0 to `end`, among them a few out of range."""
        values = self._numbers.integers(0, max(1, end), shape)
        if values.size and self.is_wrong():
            values.flat[self.random.randrange(values.size)] = self.choice(
                (-1, -2, end, end + 1, 32767, -32768)
            )
        return self._laid_out(values.astype(dtype).tobytes(), shape, np.dtype(dtype))

    def _laid_out(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The array, contiguous or not aligned, with strides or in another order."""
        odd = self.choice((1, 2, 3)) if self.random.random() < self._odd_layouts else 0
        # A byte before the data, so that it begins at an odd address.
        shift = int(odd == 1)
        memory = np.empty(shift + len(data), np.uint8)
        memory[shift:] = np.frombuffer(data, np.uint8)
        array = memory[shift:].view(dtype).reshape(shape)
        if odd == 2:
            return np.asfortranarray(array)
        return np.repeat(array, 2, axis=-1)[..., ::2] if odd == 3 else array


def target_of(call: Callable[[Arguments], None], odd_layouts: float = 0.5, faults: float = 0.03) -> Target:
    """A target whose inputs are the seeds of the arguments of `call`."""

    def run(data: bytes) -> bool:
        try:
            with np.errstate(all="ignore"):
                call(Arguments(Random(data), odd_layouts, faults))
        except _REFUSALS:
            return False
        return True

    return Target(lambda random: random.randbytes(8), run)
