"""Memory for experts, in slots of one expert each. Addresses are free; memory comes with the first write."""

import mmap

import numpy as np
from numpy.typing import NDArray

_MAP_NORESERVE = 0x4000
"""Python has no name for it before 3.13."""


class Arena:
    """Slots for all the experts of a block, as many of them in use as their owner sees fit."""

    def __init__(self, num_slots: int, slot_nbytes: int) -> None:
        """Raises OSError or ValueError when there are no addresses for them."""
        self.slot_nbytes = -(-slot_nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._memory = mmap.mmap(-1, num_slots * self.slot_nbytes, flags=flags)
        self._view = memoryview(self._memory)
        self._free = list(reversed(range(num_slots)))

    @property
    def buffer(self) -> NDArray[np.uint8]:
        """All slots, one after the other."""
        return np.frombuffer(self._memory, np.uint8)

    def take(self) -> int:
        """A slot that nobody uses."""
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        """Its memory is the system's again."""
        self._memory.madvise(mmap.MADV_DONTNEED, self.offset(slot), self.slot_nbytes)
        self._free.append(slot)

    def offset(self, slot: int) -> int:
        """Where the slot begins in the buffer."""
        return slot * self.slot_nbytes

    def place(self, slot: int, start: int, stop: int) -> memoryview:
        """Bytes `start` to `stop` of the slot, to be written to."""
        return self._view[self.offset(slot) + start : self.offset(slot) + stop]
