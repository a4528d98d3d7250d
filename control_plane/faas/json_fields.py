"""Readers for the fields of decoded JSON.

Each takes the object and a field's name, gives a default where the field is missing or null (Go
clients send null for an empty list or map), and raises ValueError, naming the field, on a wrong type.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

T = TypeVar("T")
Json = Mapping[str, Any]


def as_object(data: object, what: str) -> Json:
    """`data` itself, which must be a JSON object; `what` names it in the error."""
    if not isinstance(data, dict):
        raise ValueError(f"{what}: expected a JSON object")
    return data


def text(fields: Json, name: str) -> str:
    return _typed(fields, name, str, "")


def flag(fields: Json, name: str) -> bool:
    return _typed(fields, name, bool, False)


def number(fields: Json, name: str) -> float:
    value = fields.get(name)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}: expected a number, got {value!r}")
    return float(value)


def count(fields: Json, name: str) -> int:
    """A whole number, zero or more."""
    value = number(fields, name)
    if value < 0 or not value.is_integer():
        raise ValueError(f"{name}: expected a whole number, zero or more, got {value:g}")
    return int(value)


def time(fields: Json, name: str) -> datetime | None:
    """An RFC 3339 time, which always has a time zone."""
    value = text(fields, name)
    if not value:
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        parsed = datetime.min
    if parsed.tzinfo is None:
        raise ValueError(f"{name}: expected an RFC 3339 time, got {value!r}")
    return parsed


def text_list(fields: Json, name: str) -> tuple[str, ...]:
    values: list[object] = _typed(fields, name, list, [])
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name}: expected a list of strings")
    return tuple(str(value) for value in values)


def text_map(fields: Json, name: str) -> Mapping[str, str]:
    values: dict[str, object] = _typed(fields, name, dict, {})
    if not all(isinstance(value, str) for value in values.values()):
        raise ValueError(f"{name}: expected an object whose values are strings")
    return {key: str(value) for key, value in values.items()}


def _typed(fields: Json, name: str, kind: type[T], default: T) -> T:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise ValueError(f"{name}: expected {kind.__name__}, got {value!r}")
    return value
