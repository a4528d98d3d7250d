"""States of fixed size that a model keeps of each running sequence, by lanes.

A lane has two places for its states: a step reads one and writes the other, and the places change their
roles when the step has been computed. So a step that fails has changed nothing. Memory is taken when it is
written, and a freed lane's is returned to the operating system, which zeroes it.
"""

import math
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from control_plane.errors import EngineError

MOST_KEPT = 2
"""States of a lane that are kept besides those that it is at."""
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


def kept_lengths(lengths: Iterable[int]) -> list[int]:
    """Of states after these numbers of tokens, those that are kept: the first and the last ones."""
    first, *others = sorted(lengths)
    return [first, *others[-(MOST_KEPT - 1) :]]


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
    _kept: dict[int, dict[int, list[NDArray[Any]]]] = field(default_factory=dict)
    """Copies of a lane's earlier states, by the number of tokens that they are after."""

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
        self.drop_kept(lane)

    def keep(self, lane: int) -> None:
        """Keep a copy of the lane's states, and drop those that are not of `kept_lengths`."""
        kept = self._kept.setdefault(lane, {})
        kept[self._lengths[lane]] = [array[self._current[lane]].copy() for array in self.arrays]
        self._kept[lane] = {length: kept[length] for length in kept_lengths(kept)}

    def num_kept(self, lane: int) -> int:
        """The number of copies."""
        return len(self._kept.get(lane, ()))

    def num_kept_after(self, lane: int) -> int:
        """The number of copies after `keep`."""
        return len(kept_lengths({*self._kept.get(lane, ()), self._lengths[lane]}))

    def drop_kept(self, lane: int) -> None:
        """Drop all copies."""
        self._kept.pop(lane, None)

    def usable(self, lane: int, length: int) -> int:
        """The most tokens, up to `length`, that there are states after; 0 if there are none."""
        lengths = (self._lengths[lane], *self._kept.get(lane, ()))
        return max((each for each in lengths if each <= length), default=0)

    def cut(self, lane: int, length: int) -> None:
        """Go back to the states after `length` tokens, which must be there. Later ones are dropped."""
        if self._lengths[lane] != length:
            self.copy(lane, lane, length)
        kept = self._kept.get(lane, {})
        for each in [each for each in kept if each > length]:
            del kept[each]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a lane's states after `length` tokens to another. Raises `ValueError` if there are none."""
        if self._lengths[source] == length:
            states = [array[self._current[source]] for array in self.arrays]
        elif length in self._kept.get(source, {}):
            states = self._kept[source][length]
        else:
            raise ValueError(f"a lane has no states after {length} tokens")
        for array, state in zip(self.arrays, states, strict=True):
            array[self.target(target)] = state
        self.commit(target, length)
