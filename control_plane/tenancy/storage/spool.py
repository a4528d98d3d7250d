"""A file of bookings that the database could not take, until it can.

Each line is the CRC-32 of an entry in hexadecimal, a space, and the entry in JSON. A file belongs to the
process that holds its lock. What a process leaves behind is taken over by the next one.
"""

import fcntl
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from control_plane.tenancy.usage import Entry

MAX_SPOOL_BYTES = 64 << 20
"""Largest size of one file: some 400,000 bookings."""

_logger = logging.getLogger(__name__)


class Spool:
    """One file of entries. All methods but `close` raise `OSError`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """`path` is open with this descriptor, and locked."""
        self.path = path
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        """Bytes."""

    @classmethod
    def create(cls, path: Path) -> "Spool":
        """Create an empty file, readable and writable by its owner only."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return cls(path, descriptor)

    @classmethod
    def left_behind(cls, prefix: Path) -> Iterator["Spool"]:
        """The files whose path begins with `prefix`, and which no living process holds."""
        for path in sorted(prefix.parent.glob(f"{prefix.name}*")):
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                else:
                    yield cls(path, descriptor)

    def append(self, entry: Entry) -> None:
        """Add an entry, which is on the disk when this returns. After an error, the file is as before."""
        line = _line(entry)
        if self.size + len(line) > MAX_SPOOL_BYTES:
            raise OSError(f"{self.path} has {self.size} bytes, and may have {MAX_SPOOL_BYTES}")
        if os.fstat(self._descriptor).st_size != self.size:
            # The rest of an entry that was not written in full, and could not be taken back at the time.
            os.ftruncate(self._descriptor, self.size)
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes fit")
            os.fsync(self._descriptor)
            if not self.size:
                _sync_folder(self.path.parent)
        except OSError:
            os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(line)

    def read(self, offset: int, most_bytes: int) -> tuple[list[Entry], int]:
        """The entries from a byte offset on, some `most_bytes` of them, and the offset after them.

        Leaves out lines that are damaged, and a last line that was cut off when its process died.
        """
        block = os.pread(self._descriptor, most_bytes, offset)
        while b"\n" not in block and offset + len(block) < self.size:
            block += os.pread(self._descriptor, most_bytes, offset + len(block))
        whole, _, rest = block.rpartition(b"\n")
        if offset + len(block) >= self.size:
            rest = b""
        entries = [entry for line in whole.splitlines() if (entry := self._entry(line))]
        return entries, offset + len(block) - len(rest)

    def entries(self, offset: int) -> Iterator[Entry]:
        """All entries from a byte offset on."""
        while offset < self.size:
            found, offset = self.read(offset, 1 << 20)
            yield from found

    def remove(self) -> None:
        """Delete the file, whose entries are in the database."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self.close()

    def close(self) -> None:
        """Release the file. Its entries stay in it."""
        os.close(self._descriptor)

    def _entry(self, line: bytes) -> Entry | None:
        checksum, _, body = line.partition(b" ")
        try:
            if int(checksum, 16) == zlib.crc32(body):
                return msgspec.json.decode(body, type=Entry)
        except ValueError:
            pass
        _logger.error("%s: a line is damaged, and its bookings are lost: %r", self.path, line[:4096])
        return None


def _line(entry: Entry) -> bytes:
    body = msgspec.json.encode(entry)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _sync_folder(folder: Path) -> None:
    """Make sure that a new file in the folder survives a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
