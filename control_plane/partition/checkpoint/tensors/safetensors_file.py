"""Tensors of safetensors files, which are read by offset.

All numbers of a file's header are checked before any tensor is read. The format
(https://huggingface.co/docs/safetensors) is 8 bytes of header length, the header as JSON, and the data.
Files are not memory-mapped, because mapped pages count as this process's memory.
"""

import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.files import parse_json_object, regular_size
from control_plane.partition.checkpoint.tensors.tensor import Tensor

MAX_HEADER_NBYTES = 32 << 20
"""Some 200,000 tensors. Parsing takes up to twenty times as much memory."""
MAX_NAME_LENGTH = 500
MAX_DIMENSIONS = 8

_LARGEST = 1 << 62
_PLAIN: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_STORED: dict[str, np.dtype[Any]] = {
    **_PLAIN,
    # Of quantised checkpoints: codes, scales, zero points and sizes.
    "F8_E4M3": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}


@dataclass(frozen=True)
class StoredTensor(Tensor):
    """A tensor in a file, whose values start at byte `offset` in row-major order.

    In a quantised checkpoint, its dtype may be another one than a `Tensor`'s: then it has no values of its
    own, only numbers, which `read_stored` returns.
    """

    offset: int

    @property
    def is_plain(self) -> bool:
        """Whether it has values."""
        return self.dtype in _PLAIN

    @property
    def nbytes(self) -> int:
        return self.size * _STORED[self.dtype].itemsize

    def read(self, start: int, count: int) -> NDArray[Any]:
        """Read values from the file, as `Tensor.read` says.

        float16 becomes float32, since bf16 would lose three of its bits and no kernel reads float16.
        Raises PartitionError if the file cannot be read.
        """
        if not self.is_plain:
            raise unsupported(self)
        values = self.read_stored(start, count)
        return values.astype(np.float32) if self.dtype == "F16" else values

    def read_stored(self, start: int, count: int) -> NDArray[Any]:
        """Numbers in the file's own dtype; the bits of those that NumPy does not have.

        Raises PartitionError if the file cannot be read.
        """
        numbers = np.empty(count, _STORED[self.dtype])
        read_into(self.path, self.offset + start * numbers.itemsize, numbers.view(np.uint8))
        return numbers


def unsupported(tensor: Tensor) -> UnsupportedModel:
    """The error for a tensor without values."""
    found = f"{tensor.path}: {tensor.name} has dtype {tensor.dtype[:20]}"
    return UnsupportedModel(f"{found}; only F32, F16 and BF16 can be split")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name.

    Raises PartitionError for a file that is truncated or malformed, UnsupportedModel for a dtype that no
    supported checkpoint has.
    """
    header, data_offset = load_header(path)
    header.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, data_offset) for name, entry in header.items()]
    end = data_offset
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            raise PartitionError(f"{path}: {tensor.name} overlaps its neighbour or leaves a hole before it")
        end += tensor.nbytes
    size = path.stat().st_size
    if size != end:
        problem = "is truncated" if size < end else "has bytes too many"
        raise PartitionError(f"{path} {problem}: its header describes {end} bytes, it has {size}")
    return {tensor.name: tensor for tensor in tensors}


def load_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header's JSON object, whose entries are not checked, and the byte at which the data starts.

    Raises PartitionError for a file without one.
    """
    size = regular_size(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_NBYTES, size - 8):
                raise PartitionError(f"{path} is no safetensors file: a header of {length} bytes in {size}")
            header = file.read(length)
    except OSError as error:
        raise PartitionError(f"cannot read {path}: {error.strerror}") from error
    return parse_json_object(header, f"{path} is no safetensors file: its header"), 8 + length


def _tensor(path: Path, name: str, entry: object, data_offset: int) -> StoredTensor:
    if len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise PartitionError(f"{path}: {reprlib.repr(name)} is no tensor's name")
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise PartitionError(f"{path}: the header's entry of {name} is malformed")
    # The product of thousands of large numbers would take hours.
    if len(shape) > MAX_DIMENSIONS or not all(
        type(length) is int and 0 <= length < _LARGEST for length in shape
    ):
        raise PartitionError(f"{path}: {name} has the shape {reprlib.repr(shape)}")
    tensor = StoredTensor(name, path, dtype, tuple(shape), data_offset + begin)
    if dtype not in _STORED:
        raise unsupported(tensor)
    if begin < 0 or end - begin != tensor.nbytes:
        where = f"{reprlib.repr(begin)} to {reprlib.repr(end)}"
        raise PartitionError(f"{path}: {name} {shape} {dtype} does not fit its bytes {where}")
    return tensor


def read_into(path: Path, offset: int, buffer: NDArray[np.uint8]) -> None:
    """Fill a buffer with the bytes of a file from `offset` on. Raises PartitionError."""
    filled = 0
    try:
        with path.open("rb", buffering=0) as file:
            while filled < buffer.size:
                count = os.preadv(file.fileno(), [buffer[filled:].data], offset + filled)
                if count == 0:
                    raise PartitionError(f"{path} became shorter while it was read")
                filled += count
    except OSError as error:
        raise PartitionError(f"cannot read {path}: {error.strerror}") from error
