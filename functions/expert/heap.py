"""Has glibc give large buffers back to the system as soon as they are free.

Otherwise each thread keeps what the longest prompt has ever needed, some ten megabytes in each function.
"""

import ctypes

MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of mallopt(3). Set, it no longer grows by itself."""
MMAP_BYTES = 256 << 10
"""A step's rows of many sequences that generate stay below it; those of prompts, whose computing takes longer
by far than a few page faults, are above."""


def return_large_buffers() -> None:
    """For all that is allocated from now on; where the C library is not glibc, nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, MMAP_BYTES)
