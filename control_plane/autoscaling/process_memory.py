"""What this process uses of memory."""

import ctypes
import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")

_KIB = 1024
_PRODUCT_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's, and torch's around it."""
_KEPT_PRODUCTS = "16"
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)")


def used_bytes(proc: Path = _PROC) -> int:
    """This process's proportional set size: its own memory, and its part of what it shares.

    The kernel looks at each page for it, which takes milliseconds for each gigabyte.
    """
    rollup = (proc / "self" / "smaps_rollup").read_text()
    return _field(rollup, "Pss") * _KIB


@dataclass(frozen=True)
class OwnMemory:
    """Follows what this process uses at no cost: the kernel counts resident pages anyway."""

    shared: int
    """Bytes of those that are others', as far as they share them."""

    @classmethod
    def measure(cls) -> "OwnMemory":
        """Look at each page, once."""
        return cls(max(_resident_bytes() - used_bytes(), 0))

    def used(self) -> int:
        """As `used_bytes`, if as much is shared as at first."""
        return _resident_bytes() - self.shared


def unread_bytes(file: Path, proc: Path = _PROC) -> int:
    """How much of a file this process has mapped and not read yet; 0 when it has not mapped it."""
    unread, ours = 0, False
    wanted = str(file.resolve())
    with (proc / "self" / "smaps").open() as lines:
        for line in lines:
            if mapping := _MAPPING.match(line):
                ours = mapping[1].rstrip("\n") == wanted
            elif ours and line.startswith("Size:"):
                unread += int(line.split()[1])
            elif ours and line.startswith("Rss:"):
                unread -= int(line.split()[1])
    return unread * _KIB


def give_back() -> None:
    """Give the kernel what the heap holds and does not use, where the C library can (glibc's)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def bound_product_caches() -> None:
    """Have torch keep code for the last few shapes of matrix products; to be called before the first one.

    By itself it keeps a thousand of each of two kinds, some 0.4 MB together for each number of rows that a
    step of a bf16 model ever has. `make bench-batch` is as fast with a few.
    """
    for variable in _PRODUCT_CACHES:
        os.environ.setdefault(variable, _KEPT_PRODUCTS)


def _resident_bytes() -> int:
    return int((_PROC / "self" / "statm").read_text().split()[1]) * mmap.PAGESIZE


def _field(text: str, name: str) -> int:
    """The number behind a name, as /proc writes it; 0 where there is none."""
    match = re.search(rf"^{name}: +(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else 0
