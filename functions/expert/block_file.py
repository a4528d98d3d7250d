"""Reads the experts of a block file past the page cache, and checks each by its checksum."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from functions.contract.manifest import ExpertChecksum, StoredExpert


class BlockReadError(Exception):
    """The block's file cannot be read."""


class BlockDamaged(BlockReadError):
    """An expert's bytes are not those of the partition, and reading them again did not help."""


class BlockFile:
    """One open block file, whose experts lie one after the other from byte `start` on.

    Experts are named by their position in this order. The file stays readable when its name is removed or
    goes to another file. Contents count, not times: a file that is touched or copied anew is as good.
    """

    def __init__(self, path: Path, start: int, expert_nbytes: int, experts: Sequence[StoredExpert]) -> None:
        """Open the file. Raises `OSError`."""
        self.path = path
        self.expert_nbytes = expert_nbytes
        self.experts = experts
        self._start = start
        self._file, self._direct = _open(path)

    @property
    def nbytes(self) -> int:
        """The size of the open file."""
        return os.fstat(self._file).st_size

    def read(self, position: int, slot: memoryview, start: int, stop: int) -> None:
        """Fill bytes `start` to `stop` of `slot`, the place of a whole expert; both are whole pages.

        When `stop` is the expert's end, its checksum is checked. An expert that is not as it should be is
        read once more, from the file that has the path then: the open one may have been replaced. Raises
        `BlockDamaged` if that does not help, `BlockReadError` if the system cannot read.
        """
        try:
            if self._read(position, slot, start, stop) == stop and self._is_intact(position, slot, stop):
                return
        except OSError:
            pass
        self._open_again()
        try:
            end = self._read(position, slot, 0, self.expert_nbytes)
        except OSError as error:
            raise BlockReadError(f"cannot read {self.path}: {error.strerror}") from error
        layer, number, _ = self.experts[position]
        if end < self.expert_nbytes:
            raise BlockDamaged(f"{self.path} ends within expert {number} of layer {layer}")
        if not self._is_intact(position, slot, end):
            problem = f"the checksum of expert {number} of layer {layer} differs from the manifest's"
            raise BlockDamaged(f"{self.path} is damaged: {problem}")

    def close(self) -> None:
        os.close(self._file)

    def _is_intact(self, position: int, slot: memoryview, stop: int) -> bool:
        """Whether an expert that is read up to `stop` has its checksum, or is not complete yet."""
        if stop < self.expert_nbytes:
            return True
        return ExpertChecksum(slot).hexdigest() == self.experts[position].checksum

    def _open_again(self) -> None:
        # Without the path, the open file is the only one left to read from.
        with contextlib.suppress(OSError):
            file, direct = _open(self.path)
            os.close(self._file)
            self._file, self._direct = file, direct

    def _read(self, position: int, slot: memoryview, start: int, stop: int) -> int:
        """Read until `stop` or the file's end; returns where that is in the slot. Raises OSError."""
        first = self._start + position * self.expert_nbytes
        while start < stop:
            count = self._read_some(slot[start:stop], first + start)
            if count == 0:
                break
            start += count
        return start

    def _read_some(self, place: memoryview, offset: int) -> int:
        try:
            count = os.preadv(self._file, [place], offset)
        except OSError as error:
            if not self._direct or error.errno != errno.EINVAL:
                raise
            # Some file systems accept O_DIRECT at first, and then refuse the reads.
            fcntl.fcntl(self._file, fcntl.F_SETFL, 0)
            self._direct = False
            return self._read_some(place, offset)
        if not self._direct:
            # The arena holds the weights: a second copy in the page cache would waste memory.
            os.posix_fadvise(self._file, offset, count, os.POSIX_FADV_DONTNEED)
        return count


def _open(path: Path) -> tuple[int, bool]:
    """The file descriptor, and whether reads go past the page cache, if the file system allows that."""
    # O_NONBLOCK: opening a pipe would wait for a writer.
    flags = os.O_RDONLY | os.O_NONBLOCK
    try:
        return os.open(path, flags | os.O_DIRECT), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags), False
