"""Measures and reduces the memory of this process."""

import ctypes
import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path

from functions.host.memory import memory_sizes

_PROC = Path("/proc")

_KIB = 1024
_PRODUCT_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""The environment variables for the sizes of oneDNN's cache and of torch's cache around it."""
_KEPT_PRODUCTS = "16"
"""Shapes of matrix products per cache."""
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)")


def used_bytes() -> int:
    """This process's proportional set size: its own memory, and its part of the memory that it shares.

    Reading it takes milliseconds per gigabyte.
    """
    return memory_sizes().get("Pss", 0)


@dataclass(frozen=True)
class OwnMemory:
    """Follows this process's memory at no cost, by the number of resident pages that the kernel keeps."""

    shared: int
    """The part of the resident bytes that counts for other processes, which share them."""

    @classmethod
    def measure(cls) -> "OwnMemory":
        """Determine the shared part, by visiting each page once."""
        return cls(max(_resident_bytes() - used_bytes(), 0))

    def used(self) -> int:
        """An estimate of `used_bytes`, on the assumption that the shared part has not changed."""
        return _resident_bytes() - self.shared


def unread_bytes(file: Path) -> int:
    """The bytes of a file that this process has mapped but not read yet; 0 for a file that is not mapped."""
    unread, ours = 0, False
    wanted = str(file.resolve())
    with (_PROC / "self" / "smaps").open() as lines:
        for line in lines:
            if mapping := _MAPPING.match(line):
                ours = mapping[1].rstrip("\n") == wanted
            elif ours and line.startswith("Size:"):
                unread += int(line.split()[1])
            elif ours and line.startswith("Rss:"):
                unread -= int(line.split()[1])
    return unread * _KIB


def trim_heap() -> None:
    """Return the heap's unused memory to the system, if the C library can do so (glibc can)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def bound_product_caches() -> None:
    """Have torch cache code for only a few shapes of matrix products. To be called before the first product.

    By default it caches 1,000 shapes in each of two caches: about 0.4 MB together for each number of rows
    that a step of a bf16 model ever has. `make bench-batch` is as fast with a few.
    """
    for variable in _PRODUCT_CACHES:
        os.environ.setdefault(variable, _KEPT_PRODUCTS)


def _resident_bytes() -> int:
    return int((_PROC / "self" / "statm").read_text().split()[1]) * mmap.PAGESIZE
