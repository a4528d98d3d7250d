"""Which experts' weights this function has in memory.

The weights are mapped pages: the kernel brings them in when an expert is first used, and may take them
back when memory is short. What is counted here is use since the function started.
"""

import mmap
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field


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
            # One request for the whole range: faulting it in page by page reads the disk in small pieces.
            # Where pages are larger than 4 KB, as on some ARM boards, an expert may begin within one.
            lead = offset % mmap.PAGESIZE
            self.mapped.madvise(mmap.MADV_WILLNEED, offset - lead, lead + self.expert_nbytes)
        return len(cold)

    @property
    def resident_experts(self) -> int:
        """How many experts have been used since the start."""
        return len(self._resident)

    @property
    def resident_bytes(self) -> int:
        """The bytes of those experts' weights."""
        return len(self._resident) * self.expert_nbytes
