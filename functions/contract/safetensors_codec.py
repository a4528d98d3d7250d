"""The container format of a message: named tensors and string metadata as safetensors bytes.

The layout is that of https://github.com/huggingface/safetensors: eight bytes of header length, a JSON
header, the tensors. That library is not used because a message needs its metadata back, bf16 without torch,
and tensors that are views of the received bytes instead of copies.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONTENT_TYPE = "application/vnd.safetensors"
MAX_HEADER_BYTES = 65536

# bf16 has no NumPy type: its 16 bits travel as uint16, which no message uses for anything else.
_NUMPY_BY_NAME: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "BF16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
}
_NAME_BY_NUMPY = {dtype: name for name, dtype in _NUMPY_BY_NAME.items()}


Layout = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]
"""Name, type and shape of each of a message's tensors, in their order."""


class WireError(ValueError):
    """The bytes are not a message of this contract."""


@dataclass(frozen=True)
class Message:
    """Named tensors and string metadata. Decoded tensors are views of the received bytes."""

    tensors: Mapping[str, NDArray[Any]]
    metadata: Mapping[str, str]

    def matrix(self, name: str, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
        """The two-dimensional tensor `name`, of any dtype if `dtype` is None; raises `WireError`."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise WireError(f"tensor {name!r} is missing")
        if tensor.ndim != 2 or (dtype is not None and tensor.dtype != dtype):
            raise WireError(f"tensor {name!r} is {_NAME_BY_NUMPY[tensor.dtype]} {list(tensor.shape)}")
        return tensor


def encode(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """The message as buffers to be sent one after the other; copies no contiguous tensor."""
    head, order = header(layout_of(tensors), metadata)
    arrays = list(tensors.values())
    return [head, *(buffer_of(arrays[number]) for number in order)]


def layout_of(tensors: Mapping[str, NDArray[Any]]) -> Layout:
    """What a message's header says of its tensors."""
    return tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())


def header(layout: Layout, metadata: Mapping[str, str]) -> tuple[bytes, list[int]]:
    """All of a message that precedes its tensors, and the order in which these follow: indices of `layout`.

    The widest type is first, as safetensors itself has it, so that every tensor is aligned to its type.
    """
    order = sorted(range(len(layout)), key=lambda number: -layout[number][1].itemsize)
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, dtype, shape in (layout[number] for number in order):
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAME_BY_NUMPY[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, order


def buffer_of(tensor: NDArray[Any]) -> memoryview:
    """The tensor's bytes, without a copy if it is contiguous."""
    return np.ascontiguousarray(tensor).data.cast("B") if tensor.size else memoryview(b"")


def decode(body: bytes | bytearray) -> Message:
    """Read a message; raises `WireError` for anything that is not exactly one."""
    if len(body) < 8:
        raise WireError("shorter than a safetensors header")
    (length,) = struct.unpack_from("<Q", body)
    if length > min(MAX_HEADER_BYTES, len(body) - 8):
        raise WireError(f"header of {length} bytes in a body of {len(body)}")
    try:
        header = json.loads(body[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        tensors, end = _views(body, 8 + length, header)
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise WireError(f"not a safetensors message: {error}") from None
    if end != len(body):
        raise WireError(f"the tensors take {end} bytes of a body of {len(body)}")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WireError("metadata is not a map of strings")
    return Message(tensors, metadata)


def _views(
    body: bytes | bytearray, data_start: int, header: dict[str, Any]
) -> tuple[dict[str, NDArray[Any]], int]:
    """The tensors as views of `body`, and the byte at which the last one ends.

    Raises `WireError` unless the tensors follow each other without a gap.
    """
    tensors = {}
    position = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = _NUMPY_BY_NAME[entry["dtype"]]
        shape, (start, end) = entry["shape"], entry["data_offsets"]
        # type() and not isinstance(): JSON's true is an int to the latter.
        if type(shape) is not list or any(type(size) is not int or size < 0 for size in (*shape, start, end)):
            raise WireError(f"shape and data_offsets of {name} are {shape}, {[start, end]}")
        count = math.prod(shape)
        if start != position or end - start != count * dtype.itemsize:
            raise WireError(f"data_offsets of {name} are {start}, {end} for {entry['dtype']} {shape}")
        tensors[name] = np.frombuffer(body, dtype, count, data_start + start).reshape(shape)
        position = end
    return tensors, data_start + position
