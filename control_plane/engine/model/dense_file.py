"""The tensors of a partition's dense file, as NumPy arrays that are mapped from it."""

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.tensors.safetensors_file import load_header
from control_plane.partition.dense import PACKED, PackedMatrix, packed_matrices

_DTYPE: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
}


class StoredArray(NamedTuple):
    """Where an array is in a file, in row-major order from byte `offset` on. bfloat16 is uint16."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class DenseFile:
    """The arrays of a safetensors file by name. Its pages are read when they are used.

    The file must be one that `faasmoe partition` wrote, and whose checksum is right.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        """`dtype` is that of the activations. Raises `OSError`, and `PartitionError` for packed matrices that
        make no sense."""
        self._entries, self._data = load_header(path)
        self._matrices = packed_matrices(self._entries.pop("__metadata__", {}), dtype)
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.path = path

    def release(self) -> None:
        """Take the pages that were read out of this process's memory. They are mapped again when they are
        used."""
        self._bytes.madvise(mmap.MADV_DONTNEED)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def stored(self, name: str) -> StoredArray:
        """Where a tensor is. Raises `PartitionError`."""
        if name not in self._entries:
            raise PartitionError(f"{self.path} lacks {name}")
        entry = self._entries[name]
        begin, end = entry["data_offsets"]
        return StoredArray(_DTYPE[entry["dtype"]], tuple(entry["shape"]), self._data + begin, end - begin)

    def array(self, name: str) -> NDArray[Any]:
        """A tensor: a read-only view of the file. Raises `PartitionError`."""
        stored = self.stored(name)
        values = np.frombuffer(self._bytes, np.uint8, stored.nbytes, stored.offset)
        return values.view(stored.dtype).reshape(stored.shape)

    def is_packed(self, module: str) -> bool:
        """Whether the weights of a module are stored packed."""
        return module + PACKED in self._entries

    def packed(self, module: str) -> NDArray[np.uint8]:
        """The packed bytes of a module. Raises `PartitionError`."""
        return self.array(module + PACKED)

    def packed_matrix(self, name: str) -> PackedMatrix:
        """What is packed of a matrix, by the name that it had. Raises `PartitionError`."""
        if name not in self._matrices:
            raise PartitionError(f"{self.path} lacks {name}")
        return self._matrices[name]
