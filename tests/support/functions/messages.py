"""Messages of the invocation contract as bytes."""

import json
import struct
from typing import Any

from numpy.typing import NDArray


def joined(message: list[bytes | memoryview]) -> bytes:
    return b"".join(message)


def same(found: NDArray[Any], wanted: NDArray[Any]) -> bool:
    """Whether both arrays have the same dtype, shape and bits; NaN equals itself."""
    return (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


def raw(header: Any, data: bytes = b"") -> bytes:
    """A message with any header, well-formed or not: `header` is bytes or becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
