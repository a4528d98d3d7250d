"""Bounds of the JSON values that requests bring for templates and grammars: tools, schemas, documents."""

from collections.abc import Iterable
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
    depth, level = 0, _containers([value])
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep(path)
        level = [child for parent in level for child in _containers(_children(parent))]


def _containers(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


def _children(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _too_deep(path: str) -> BadRequest:
    return field_error(path, f"has more than {MAX_DEPTH} lists and objects inside each other")
