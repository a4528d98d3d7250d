"""The tensors of a partition's dense file, as NumPy arrays that are mapped from it."""

import json
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.errors import PartitionError
from control_plane.partition.dense import PACKED, PackedMatrix, packed_matrices

_DTYPE = {"F32": np.float32, "BF16": np.uint16, "U8": np.uint8}


class DenseFile:
    """The arrays of a safetensors file by name. Its pages are read when they are used.

    The file must be one that `faasmoe partition` wrote, and whose checksum is right.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        """`dtype` is that of the activations. Raises `OSError`, and `PartitionError` for packed matrices that
        make no sense."""
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            self._entries: dict[str, Any] = json.loads(file.read(length))
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._path = path
        self._data = 8 + length
        self._matrices = packed_matrices(self._entries.pop("__metadata__", {}), dtype)

    def release(self) -> None:
        """Take the pages that were read out of this process's memory. They are mapped again when they are
        used."""
        self._bytes.madvise(mmap.MADV_DONTNEED)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def array(self, name: str) -> NDArray[Any]:
        """A tensor, bfloat16 as uint16: a read-only view of the file. Raises `PartitionError`."""
        if name not in self._entries:
            raise PartitionError(f"{self._path} lacks {name}")
        entry = self._entries[name]
        begin, end = entry["data_offsets"]
        values = np.frombuffer(self._bytes, np.uint8, end - begin, self._data + begin)
        return values.view(_DTYPE[entry["dtype"]]).reshape(entry["shape"])

    def is_packed(self, module: str) -> bool:
        """Whether the weights of a module are stored packed."""
        return module + PACKED in self._entries

    def packed(self, module: str) -> NDArray[np.uint8]:
        """The packed bytes of a module. Raises `PartitionError`."""
        return self.array(module + PACKED)

    def packed_matrix(self, name: str) -> PackedMatrix:
        """What is packed of a matrix, by the name that it had. Raises `PartitionError`."""
        if name not in self._matrices:
            raise PartitionError(f"{self._path} lacks {name}")
        return self._matrices[name]
