"""The header of a GGUF file: its metadata, and where its tensors are.

The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. All counts and lengths
are checked against the file's size before anything is read, and the file is not memory-mapped.
"""

import math
import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.files import regular_size

MAX_HEADER_NBYTES = 64 << 20
"""Vocabularies of 256,000 tokens take 20 MB."""
MAX_ENTRIES = 1 << 16
"""The most keys of the metadata."""
MAX_TENSORS = 1 << 17
MAX_ARRAY = 1 << 21
"""The most elements of an array: of tokens, or of merges."""
MAX_TEXT_NBYTES = 1 << 20
"""The longest string. Chat templates have some 20 KB."""
MAX_DIMENSIONS = 4

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_LARGEST = 1 << 62
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """An entry of the file's list of tensors. The shape is in NumPy's order: rows are along the last."""

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int
    """The first byte in the file."""


@dataclass(frozen=True)
class GgufHeader:
    """What a file says of itself. Arrays of the metadata are of NumPy, those of strings lists."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    size: int
    """The bytes of the file."""


def read_header(path: Path) -> GgufHeader:
    """Read the header of a file. Raises PartitionError for one that is truncated or malformed."""
    size = regular_size(path)
    try:
        with path.open("rb") as file:
            return _Header(file, path, size).read()
    except OSError as error:
        raise PartitionError(f"cannot read {path}: {error.strerror}") from error


class _Header:
    """Reads a header from front to back."""

    def __init__(self, file: BufferedReader, path: Path, size: int) -> None:
        self._file = file
        self._path = path
        self._size = size
        self._left = min(size, MAX_HEADER_NBYTES)

    def read(self) -> GgufHeader:
        if self._take(4) != _MAGIC:
            raise self._malformed("it does not start with its magic number")
        if (version := self._number("<u4")) not in _VERSIONS:
            raise UnsupportedModel(f"{self._path} is of version {version} of GGUF; only 2 and 3 can be read")
        tensors = self._count("tensors", MAX_TENSORS, 24)
        entries = self._count("entries of metadata", MAX_ENTRIES, 12)
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._text()
            if key in metadata:
                raise self._malformed(f"it has {reprlib.repr(key)} twice")
            metadata[key] = self._value(self._number("<u4"))
        infos = [self._tensor() for _ in range(tensors)]
        return GgufHeader(self._path, metadata, self._placed(metadata, infos), self._size)

    def _placed(self, metadata: Mapping[str, Any], infos: list[TensorInfo]) -> tuple[TensorInfo, ...]:
        """The tensors with offsets from the start of the file."""
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
            raise self._malformed(f"its alignment is {reprlib.repr(alignment)}")
        start = math.ceil(self._file.tell() / alignment) * alignment
        if len({info.name for info in infos}) < len(infos):
            raise self._malformed("it has two tensors of one name")
        return tuple(
            TensorInfo(info.name, info.shape, info.type_number, start + info.offset) for info in infos
        )

    def _tensor(self) -> TensorInfo:
        name = self._text()
        dimensions = self._number("<u4")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._malformed(f"{reprlib.repr(name)} has {dimensions} dimensions")
        shape = tuple(self._number("<u8") for _ in range(dimensions))[::-1]
        type_number, offset = self._number("<u4"), self._number("<u8")
        if not all(1 <= length < _LARGEST for length in shape) or offset >= _LARGEST:
            raise self._malformed(f"{reprlib.repr(name)} is {list(shape)} at byte {offset}")
        return TensorInfo(name, shape, type_number, offset)

    def _value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _TEXT:
            return self._text()
        if kind != _ARRAY:
            raise self._malformed(f"its metadata has a value of type {kind}")
        kind = self._number("<u4")
        if kind in _NUMBERS:
            dtype = np.dtype(_NUMBERS[kind])
            count = self._count("elements", MAX_ARRAY, dtype.itemsize)
            return np.frombuffer(self._take(count * dtype.itemsize), dtype)
        if kind != _TEXT:
            raise self._malformed(f"its metadata has an array of type {kind}")
        return [self._text() for _ in range(self._count("strings", MAX_ARRAY, 8))]

    def _text(self) -> str:
        length = self._number("<u8")
        if length > MAX_TEXT_NBYTES:
            raise self._malformed(f"it has a string of {length} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise self._malformed("it has a string that is not UTF-8") from error

    def _count(self, what: str, most: int, least_nbytes: int) -> int:
        """A number of things, each of which takes at least so many bytes."""
        count: int = self._number("<u8")
        if count > most or count * least_nbytes > self._left:
            raise self._malformed(f"it says that it has {count} {what}")
        return count

    def _number(self, dtype: str) -> Any:
        number = _FORMATS[dtype].unpack(self._take(_FORMATS[dtype].size))[0]
        # 1e-6 in four bytes is meant, not the nearest number of eight bytes.
        return float(str(np.float32(number))) if dtype == "<f4" else number

    def _take(self, nbytes: int) -> bytes:
        if nbytes > self._left:
            raise self._malformed(f"it ends, or takes more than {MAX_HEADER_NBYTES >> 20} MiB")
        self._left -= nbytes
        data = self._file.read(nbytes)
        if len(data) < nbytes:
            raise PartitionError(f"{self._path} became shorter while it was read")
        return data

    def _malformed(self, problem: str) -> PartitionError:
        return PartitionError(f"{self._path} is no GGUF file that can be read: {problem} in its header")


_FORMATS = {
    "<u1": struct.Struct("<B"),
    "<i1": struct.Struct("<b"),
    "<u2": struct.Struct("<H"),
    "<i2": struct.Struct("<h"),
    "<u4": struct.Struct("<I"),
    "<i4": struct.Struct("<i"),
    "<f4": struct.Struct("<f"),
    "?": struct.Struct("?"),
    "<u8": struct.Struct("<Q"),
    "<i8": struct.Struct("<q"),
    "<f8": struct.Struct("<d"),
}
