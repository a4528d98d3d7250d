"""Writes a safetensors file from front to back, and computes its checksum on the way."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from functions.contract.manifest import PAGE_NBYTES

_ITEM_NBYTES = {"F32": 4, "BF16": 2, "U8": 1}


@dataclass(frozen=True)
class TensorEntry:
    """The header's entry for one tensor; `dtype` is F32, BF16 or U8."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _ITEM_NBYTES[self.dtype]


class TensorWriter:
    """A context manager that writes the header on entry; `write` then appends the tensors' values in order.

    Data starts at `data_offset`, a whole number of pages. At the end, `nbytes` and `sha256` are those of the
    whole file.
    """

    def __init__(self, path: Path, entries: Sequence[TensorEntry], metadata: Mapping[str, str]) -> None:
        self._header = _header(entries, metadata)
        self._file = path.open("xb")
        self._sha256 = hashlib.sha256()
        self.data_offset = len(self._header)
        self.nbytes = 0

    def __enter__(self) -> "TensorWriter":
        self._append(self._header)
        return self

    def write(self, values: NDArray[Any]) -> None:
        self._append(values.data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.nbytes += memoryview(data).nbytes


def _header(entries: Sequence[TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """The header's length and JSON, padded with spaces to whole pages."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [begin, end]}
    document = json.dumps(header, separators=(",", ":")).encode()
    padding = -(8 + len(document)) % PAGE_NBYTES
    return (len(document) + padding).to_bytes(8, "little") + document + b" " * padding
