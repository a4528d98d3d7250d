"""Memory for experts, in slots of one expert each.

All slots have addresses from the start; the system adds memory at the first write. Slots lie on huge pages
where the system has them: kernels read those a fifth faster, and direct reads fill them twice as fast
(docs/benchmarks.md). The part of a slot after its last whole huge page has small pages, so that a slot takes
no more memory than its expert.
"""

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray

HUGE_PAGE_NBYTES = 2 << 20

_MAP_NORESERVE = 0x4000
"""Python has mmap.MAP_NORESERVE since 3.13."""


class Arena:
    """A slot for each expert of a block; only slots in use take memory."""

    def __init__(self, num_slots: int, slot_nbytes: int) -> None:
        """Raises OSError or ValueError when there are no addresses for them."""
        self.slot_nbytes = _rounded_up(slot_nbytes, mmap.PAGESIZE)
        """Bytes of memory that a slot in use takes."""
        huge = slot_nbytes >= HUGE_PAGE_NBYTES
        self._stride = _rounded_up(slot_nbytes, HUGE_PAGE_NBYTES if huge else mmap.PAGESIZE)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        nbytes = num_slots * self._stride
        self._memory = mmap.mmap(-1, nbytes + HUGE_PAGE_NBYTES, flags=flags)
        address = np.frombuffer(self._memory, np.uint8).ctypes.data
        self._start = -address % HUGE_PAGE_NBYTES
        self._view = memoryview(self._memory)[self._start : self._start + nbytes]
        self._free = list(reversed(range(num_slots)))
        if huge:
            self._ask_for_huge_pages(num_slots)

    @property
    def buffer(self) -> NDArray[np.uint8]:
        """The memory of all slots, as uint8."""
        return np.frombuffer(self._view, np.uint8)

    def take(self) -> int:
        """Take a free slot; IndexError when there is none."""
        return self._free.pop()

    def free(self, slot: int) -> None:
        """Return the slot's memory to the system."""
        self._memory.madvise(mmap.MADV_DONTNEED, self._start + self.offset(slot), self.slot_nbytes)
        self._free.append(slot)

    def offset(self, slot: int) -> int:
        """The byte of `buffer` at which the slot begins."""
        return slot * self._stride

    def place(self, slot: int, start: int, stop: int) -> memoryview:
        """Bytes `start` to `stop` of the slot, writable."""
        return self._view[self.offset(slot) + start : self.offset(slot) + stop]

    def _ask_for_huge_pages(self, num_slots: int) -> None:
        whole = self.slot_nbytes - self.slot_nbytes % HUGE_PAGE_NBYTES
        # Not every system has huge pages.
        with contextlib.suppress(OSError):
            for slot in range(num_slots):
                self._memory.madvise(mmap.MADV_HUGEPAGE, self._start + self.offset(slot), whole)


def _rounded_up(nbytes: int, step: int) -> int:
    return -(-nbytes // step) * step
