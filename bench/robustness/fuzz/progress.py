"""What a worker tells its supervisor: a file that both map, which outlives a worker that crashes."""

import mmap
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

_INPUT_ROOM = 2 << 20
"""Room for the current input; a longer one is cut off."""


class _Count:
    """An attribute that is stored in the file."""

    def __init__(self, index: int) -> None:
        self._offset = 8 * index

    def __get__(self, progress: "Progress", owner: type) -> int:
        (value,) = struct.unpack_from("<q", progress.map, self._offset)
        return int(value)

    def __set__(self, progress: "Progress", value: int) -> None:
        struct.pack_into("<q", progress.map, self._offset, value)


class Progress:
    """Counts, and the input that is being handled. Both processes see every change at once."""

    begun = _Count(0)
    """How many inputs have been begun: the current one has the number below this."""
    accepted = _Count(1)
    refused = _Count(2)
    findings = _Count(3)
    memory_warm = _Count(4)
    """Bytes of the worker and its processes after a quarter of the inputs; 0 if that is not known."""
    memory_end = _Count(5)
    """The same after the last input."""
    _input_nbytes = _Count(6)
    _input = 8 * 7

    def __init__(self, path: Path) -> None:
        """Open the file, or make it."""
        with path.open("a+b") as file:
            file.truncate(self._input + _INPUT_ROOM)
            self.map = mmap.mmap(file.fileno(), self._input + _INPUT_ROOM)

    def begin(self, number: int, data: bytes) -> None:
        """Note the input that is about to be handled."""
        self._input_nbytes = min(len(data), _INPUT_ROOM)
        self.map[self._input : self._input + self._input_nbytes] = data[:_INPUT_ROOM]
        self.begun = number + 1

    @property
    def current(self) -> bytes:
        """The current input."""
        return self.map[self._input : self._input + self._input_nbytes]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.map.close()
