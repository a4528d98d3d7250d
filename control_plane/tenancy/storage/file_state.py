"""Notices that the file of an open SQLite database is another one, or was written by something else.

SQLite itself does not notice: it goes on reading a file that was replaced, and its pages in memory after a
copy over the file. A write-ahead log that the former database left behind would be merged into its successor.
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

SETTLED_SECONDS = 0.05
"""A file that was written more recently than this may be written again without a new time of change."""
LOG_SECONDS = 0.1
"""How long another process may take from its first write to the file until the log is empty."""

_Seen = tuple[int, int, int, int]


class FileState:
    """The state of a database's file as of the last `remember`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = path.with_name(f"{path.name}-wal")
        self._known: _Seen | None = None
        self._place: tuple[int, int] | None = None
        self._log_place: tuple[int, int] | None = None

    def has_changed(self) -> bool:
        """Whether the file is gone, another one, or was written since `remember`. Takes 2 us."""
        return self._known is None or _seen(self._path) != self._known

    def remember(self, settled: bool = True) -> None:
        """Note the file's present state, which is that of an open database with an empty log.

        Without `settled`, a file that was written just now counts as changed: it may be a copy in progress.
        """
        seen = _seen(self._path)
        self._place = seen[:2] if seen else None
        log = _seen(self._log)
        self._log_place = log[:2] if log else None
        recent = seen is not None and time.time() - seen[3] / 1e9 < SETTLED_SECONDS
        self._known = None if recent and not settled else seen

    def forget(self) -> None:
        """Let the file count as changed."""
        self._known = None

    def abandon_log(
        self, close: Callable[[], None], write_lock: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Call `close`, which closes the database, so that no log is left to merge into another database.

        `write_lock` takes the database's lock for writing. What it raises while another process has that, is
        raised, and the database stays open.
        """
        place, log = _seen(self._path), _seen(self._log)
        is_ours = log is not None and log[:2] == self._log_place
        replaced = self._place is not None and (place is None or place[:2] != self._place)
        if is_ours and not replaced and self._known is not None and self._log_has_pages():
            with write_lock():
                # On a slow disk, another process may have been merging the log until now.
                if self._log_has_pages():
                    # The file was overwritten. Whoever did it wants its content, not the former one's last
                    # changes.
                    os.truncate(self._log, 0)
        # While the database is open, no other file can have the number of its log.
        close()
        if is_ours and replaced:
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _log_has_pages(self) -> bool:
        """Whether the log still has pages after another process had time to merge them."""
        deadline = time.monotonic() + LOG_SECONDS
        while (log := _seen(self._log)) and log[2]:
            if time.monotonic() > deadline:
                return True
            time.sleep(LOG_SECONDS / 10)
        return False


def _seen(path: Path) -> _Seen | None:
    """Device, inode, size and time of change in ns; None if there is no such file."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
