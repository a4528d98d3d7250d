"""States of fixed size that a model keeps of each running sequence, by lanes.

A lane has two places for its states: a step reads one and writes the other, and the places change their
roles when the step has been computed. So a step that fails has changed nothing. Memory is taken when it is
written, and a freed lane's is returned to the operating system, which zeroes it.
"""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from control_plane.errors import EngineError

_ALIGNMENT = 64
_MAP_NORESERVE = 0x4000
"""Linux's value; Python's mmap module names it from 3.13 on."""


class StateShape(NamedTuple):
    """One of a sequence's states."""

    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    """uint16 stands for the bits of bfloat16."""

    @property
    def nbytes(self) -> int:
        """Bytes of the state, up to where the next one may begin."""
        nbytes = math.prod(self.sizes) * self.dtype.itemsize
        return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def place_nbytes(shapes: Sequence[StateShape]) -> int:
    """Bytes of a place for all of a sequence's states: whole pages of the machine's memory."""
    return -(-sum(shape.nbytes for shape in shapes) // mmap.PAGESIZE) * mmap.PAGESIZE


@dataclass
class LaneStates:
    """The states of running sequences."""

    shapes: Sequence[StateShape]
    num_lanes: int
    arrays: list[NDArray[Any]] = field(init=False)
    """Each state, as an array [places, *sizes]. Those of all states of a place lie side by side."""
    _current: list[int] = field(init=False)
    """The place of each lane that the next step reads."""
    _lengths: list[int] = field(init=False)
    """The number of tokens that each lane has the states after."""

    def __post_init__(self) -> None:
        """Raises `OSError` or `OverflowError` if the machine cannot reserve that many addresses."""
        self._current = [2 * lane for lane in range(self.num_lanes)]
        self._lengths = [0] * self.num_lanes
        stride = place_nbytes(self.shapes)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._memory = mmap.mmap(-1, 2 * self.num_lanes * stride, flags=flags)
        self.arrays, offset = [], 0
        for shape in self.shapes:
            strides = np.empty(shape.sizes, shape.dtype).strides
            places = (2 * self.num_lanes, *shape.sizes)
            self.arrays.append(np.ndarray(places, shape.dtype, self._memory, offset, (stride, *strides)))
            offset += shape.nbytes

    def source(self, lane: int, length: int) -> int | None:
        """The place of the lane's states after so many tokens; None before the first token.

        Raises `EngineError` if the lane has others.
        """
        if length == 0:
            return None
        if self._lengths[lane] != length:
            raise EngineError(f"a sequence has no state after {length} tokens")
        return self._current[lane]

    def target(self, lane: int) -> int:
        """The place for the states that a step computes."""
        return self._current[lane] ^ 1

    def commit(self, lane: int, length: int) -> None:
        """Make what is in the lane's target its states, after so many tokens."""
        self._current[lane] ^= 1
        self._lengths[lane] = length

    def free(self, lane: int) -> None:
        """Return a lane's memory to the operating system."""
        nbytes = 2 * place_nbytes(self.shapes)
        self._memory.madvise(mmap.MADV_DONTNEED, lane * nbytes, nbytes)
        self._lengths[lane] = 0

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a lane's states. Raises `ValueError` unless they are those after `length` tokens."""
        if self._lengths[source] != length:
            raise ValueError(f"the state is that after {self._lengths[source]} tokens, not after {length}")
        for array in self.arrays:
            array[self.target(target)] = array[self._current[source]]
        self.commit(target, length)
