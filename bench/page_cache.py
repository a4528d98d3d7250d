"""The kernel's page cache, which must not hold what a cold run is to read from disk."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def forget(files: Iterable[Path]) -> None:
    """Have it drop the files' pages and, for who may ask for that, everything else's."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    os.sync()
    with suppress(PermissionError, FileNotFoundError):
        DROP_CACHES.write_text("1")
