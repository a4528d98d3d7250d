"""Reads a block file past the page cache, and refuses to once the file has changed."""

import errno
import os
from pathlib import Path
from typing import NamedTuple


class BlockReadError(Exception):
    """The block's file cannot be read, or has changed since it was opened."""


class _Stamp(NamedTuple):
    """The parts of a file's status that a write changes."""

    size: int
    modified_ns: int


class BlockFile:
    """One open block file. It stays readable when its name is removed or goes to another file."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises `OSError`."""
        self.path = path
        self._file, self.direct = _open(path)
        self._stamp = self._read_stamp()

    @property
    def nbytes(self) -> int:
        """The file's size when it was opened."""
        return self._stamp.size

    def read_into(self, place: memoryview, offset: int) -> None:
        """Fill `place` with the bytes from `offset` on; both are whole pages. Raises `BlockReadError`."""
        try:
            if self._read_stamp() != self._stamp:
                raise BlockReadError(f"{self.path} has changed since it was opened")
            self._fill(place, offset)
        except OSError as error:
            raise BlockReadError(f"cannot read {self.path}: {error.strerror}") from error

    def close(self) -> None:
        os.close(self._file)

    def _fill(self, place: memoryview, offset: int) -> None:
        while place:
            count = self._read(place, offset)
            if count == 0:
                raise BlockReadError(f"{self.path} ends at byte {offset}, within an expert")
            place, offset = place[count:], offset + count

    def _read(self, place: memoryview, offset: int) -> int:
        try:
            count = os.preadv(self._file, [place], offset)
        except OSError as error:
            if not self.direct or error.errno != errno.EINVAL:
                raise
            # Some file systems accept O_DIRECT at first, and then refuse the reads.
            os.close(self._file)
            self._file, self.direct = os.open(self.path, os.O_RDONLY), False
            return self._read(place, offset)
        if not self.direct:
            # The arena holds the weights: a second copy in the page cache would waste memory.
            os.posix_fadvise(self._file, offset, count, os.POSIX_FADV_DONTNEED)
        return count

    def _read_stamp(self) -> _Stamp:
        status = os.fstat(self._file)
        return _Stamp(status.st_size, status.st_mtime_ns)


def _open(path: Path) -> tuple[int, bool]:
    """The file descriptor, and whether reads go past the page cache, if the file system allows that."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_RDONLY), False
