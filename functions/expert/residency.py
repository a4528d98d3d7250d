"""Which experts' weights this function has brought into memory.

The weights are mapped pages: the kernel brings them in when an expert is first used, and may take them
back when memory is short. What is counted here is use since the function started.
"""

import mmap
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

READ_AHEAD_BYTES = 128 << 10
"""Disks whose kernel settings nobody has touched allow this much at a time."""


@dataclass
class Residency:
    """The experts of one mapped block that have been used, each `expert_nbytes` long."""

    mapped: mmap.mmap
    expert_nbytes: int
    _resident: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ensure(self, offsets: Iterable[int]) -> int:
        """Have the experts at these byte offsets read in; returns how many of them were cold."""
        with self._lock:
            cold = [offset for offset in offsets if offset not in self._resident]
            self._resident.update(cold)
        for offset in cold:
            self._read_ahead(offset)
        return len(cold)

    def _read_ahead(self, offset: int) -> None:
        """Ask for an expert's pages, in pieces: of a longer range the kernel reads only the beginning."""
        # Where pages are larger than 4 KB, as on some ARM boards, an expert may begin within one.
        start, end = offset - offset % mmap.PAGESIZE, offset + self.expert_nbytes
        for piece in range(start, end, READ_AHEAD_BYTES):
            self.mapped.madvise(mmap.MADV_WILLNEED, piece, min(READ_AHEAD_BYTES, end - piece))

    @property
    def resident_experts(self) -> int:
        """How many experts have been used since the start."""
        return len(self._resident)

    @property
    def resident_bytes(self) -> int:
        """The bytes of those experts' weights."""
        return len(self._resident) * self.expert_nbytes
