"""The kernel's page cache: how much it holds of files, and how to drop them from it."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def forget(files: Iterable[Path]) -> None:
    """Drop the files from the page cache, and with enough rights everything else, too."""
    # Pages that are not yet written cannot be dropped.
    os.sync()
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with suppress(PermissionError, FileNotFoundError):
        DROP_CACHES.write_text("1")


def cached_bytes(files: Iterable[Path]) -> int:
    """Bytes of the files that are in the page cache, whichever process read them."""
    return sum(_cached_pages(path) for path in files) * mmap.PAGESIZE


def _cached_pages(path: Path) -> int:
    if not path.stat().st_size:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        content = np.frombuffer(mapped, np.uint8)
        pages = np.zeros(-(-len(content) // mmap.PAGESIZE), np.uint8)
        address, length = ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(len(content))
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            address, length, ctypes.c_void_p(pages.ctypes.data)
        )
        # The mapping cannot be closed while the array refers to it.
        del content
        if failed:
            raise OSError(ctypes.get_errno(), f"cannot read the page cache's state of {path}")
    # Bits other than the first are reserved.
    return int((pages & 1).sum())
