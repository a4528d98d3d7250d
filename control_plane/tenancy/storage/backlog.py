"""The bookings that wait for the database: in a spool file as long as it takes them, then in memory."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from control_plane.tenancy.storage.spool import Spool
from control_plane.tenancy.usage import Entry

BLOCK_BYTES = 1 << 20
"""Bytes of entries that are read from a file at once, and written to the database in one transaction."""

_logger = logging.getLogger(__name__)


class Backlog:
    """Entries in the order in which they came: files that other processes left behind, the own file, memory.

    Methods wait for the disk, and belong to one thread. Those that write raise no `OSError`: what cannot be
    written stays in memory.
    """

    def __init__(self, prefix: Path, writer: str) -> None:
        """Take over the files that nobody holds. `prefix` is the beginning of all spool files' paths."""
        self._path = prefix.with_name(prefix.name + writer)
        self._files = deque(_left_behind(prefix))
        self._own: Spool | None = None
        self._memory: deque[Entry] = deque()
        self._offset = self._next = 0
        """Where the first file's entries begin that are not dropped yet, and those after the last `first`."""
        self.waiting = sum(count(spool.entries(0)) for spool in self._files)
        """Bookings that the database does not have yet."""
        self.in_memory = 0
        """Those of them that are in no file."""
        self.spooled = 0
        """Bookings of this process that were written to a file, ever."""

    def __bool__(self) -> bool:
        return bool(self._files or self._memory)

    def add(self, entry: Entry) -> None:
        """Keep an entry, after those that wait already."""
        self._memory.append(entry)
        self.waiting += len(entry.bookings)
        self.in_memory += len(entry.bookings)
        self.save()

    def save(self) -> None:
        """Move entries from memory into the own file, as many as it takes."""
        try:
            while self._memory:
                if self._own is None:
                    self._own = Spool.create(self._path)
                    self._files.append(self._own)
                self._own.append(self._memory[0])
                self.spooled += self._forget_oldest()
        except OSError as error:
            _logger.debug("bookings stay in memory: %s", error)

    def first(self) -> list[Entry]:
        """The oldest entries, not all at once; `drop` them once the database has them. Raises `OSError`."""
        while self._files:
            spool = self._files[0]
            while self._offset < spool.size:
                entries, self._next = spool.read(self._offset, BLOCK_BYTES)
                if entries:
                    return entries
                self._offset = self._next
            self._remove_first_file()
        return list(self._memory)[:1]

    def drop(self, entries: Sequence[Entry]) -> None:
        """Forget what `first` returned. If memory was saved meanwhile, `first` returns it once more."""
        if self._offset < self._next:
            self._offset = self._next
            self.waiting -= count(entries)
        elif self._memory and self._memory[0] is entries[0]:
            self.waiting -= self._forget_oldest()

    def close(self) -> Sequence[Entry]:
        """Release the files, and return the entries that are in none."""
        for spool in self._files:
            spool.close()
        return list(self._memory)

    def _forget_oldest(self) -> int:
        """Take the oldest entry from memory; returns the number of its bookings."""
        number = len(self._memory.popleft().bookings)
        self.in_memory -= number
        return number

    def _remove_first_file(self) -> None:
        spool = self._files.popleft()
        self._offset = self._next = 0
        if spool is self._own:
            self._own = None
        try:
            spool.remove()
        except OSError as error:
            _logger.warning("%s cannot be deleted, but its bookings are booked: %s", spool.path, error)


def count(entries: Sequence[Entry] | Iterator[Entry]) -> int:
    """The number of bookings in the entries."""
    return sum(len(entry.bookings) for entry in entries)


def _left_behind(prefix: Path) -> list[Spool]:
    try:
        return list(Spool.left_behind(prefix))
    except OSError as error:
        _logger.error("bookings in %s* cannot be read: %s", prefix, error)
        return []
