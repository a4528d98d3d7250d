"""Bounds of the JSON values that requests bring for templates and grammars: tools, schemas, documents."""

from typing import Any

import msgspec

from control_plane.api.bodies.reading import field_error
from control_plane.errors import BadRequest

MAX_BYTES = 512 << 10
"""The most bytes of such a value, as MessagePack."""
MAX_DEPTH = 64
"""The most lists and objects inside each other."""


def check_json(value: Any, path: str) -> None:
    """Raise `BadRequest`, with the field at `path`, for a value that others cannot take.

    These are: text that is not Unicode, whole numbers beyond 64 bits, and what is too long or too deep.
    """
    try:
        # As a schema goes to the process that makes grammars.
        size = len(msgspec.msgpack.encode(value))
    except UnicodeEncodeError as error:
        raise field_error(path, "is not Unicode: it has half of a surrogate pair") from error
    except OverflowError as error:
        raise field_error(path, "has a whole number of more than 64 bits") from error
    except RecursionError as error:
        raise _too_deep(path) from error
    if size > MAX_BYTES:
        raise field_error(path, f"has {size} bytes, and {MAX_BYTES} are allowed")
    if is_deeper(value, MAX_DEPTH):
        raise _too_deep(path)


def is_deeper(value: Any, depth: int) -> bool:
    """Whether a value has more than `depth` lists and objects inside each other, itself included."""
    level = [value]
    for _ in range(depth + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return False
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return True


def _too_deep(path: str) -> BadRequest:
    return field_error(path, f"has more than {MAX_DEPTH} lists and objects inside each other")
