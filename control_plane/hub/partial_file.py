"""A file that is downloaded in part, and goes on where an earlier run stopped.

The hub's library resumes within one run only, so that a run which is interrupted would begin a file of 20 GB
again.
"""

import fcntl
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from control_plane.errors import HubError

_PIECE = 1 << 20


class PartialFile(io.FileIO):
    """The bytes that are there so far, with their hash. Writing is at the end only."""

    def __init__(self, path: Path, received: Callable[[int], None]) -> None:
        """Open or make a file. `received` is told of all bytes that are there or come, and of lost ones."""
        super().__init__(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")
        self._received = received
        self._hash = hashlib.sha256()

    def resume(self) -> int:
        """Read what is there; returns its bytes."""
        while piece := self.read(_PIECE):
            self._add(piece)
        return self.tell()

    @property
    def sha256(self) -> str:
        """The hash of all bytes, in hex."""
        return self._hash.hexdigest()

    def write(self, data: Any) -> int:
        """Append all of the data. Raises OSError."""
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += super().write(view[written:]) or 0
        self._add(view)
        return written

    def truncate(self, size: int | None = None) -> int:
        """Begin again: a server that sends no ranges sends all of the file."""
        self._received(-os.fstat(self.fileno()).st_size)
        self._hash = hashlib.sha256()
        self.seek(0)
        return super().truncate(0)

    def _add(self, data: Any) -> None:
        self._hash.update(data)
        self._received(len(data))


@contextmanager
def partial_file(path: Path, received: Callable[[int], None]) -> Iterator[PartialFile]:
    """Open the file for this process alone. Raises HubError if another process has it open like this."""
    with PartialFile(path, received) as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _busy(path) from error
        # The other run may have finished between the open and the lock.
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise _busy(path)
        yield file


def _busy(path: Path) -> HubError:
    return HubError(f"another run is downloading the same file into {path.parent}")
