"""JSON schemas of requests, as the library that makes grammars takes them."""

from collections.abc import Iterator, Mapping
from typing import Any

FORMATS = frozenset(
    ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown", "uri", "uuid"]
)
"""The formats of strings that the library enforces. It refuses all others."""
_MAPPINGS = ("$defs", "definitions", "properties", "patternProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")
"""The keywords with schemas in them that clients use, by what they hold."""


def parts(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas directly inside a schema, each with its path."""
    if not isinstance(schema, dict):
        return
    for name in _MAPPINGS:
        if isinstance(inner := schema.get(name), dict):
            yield from ((f"{name}.{key}", each) for key, each in inner.items())
    for name in _LISTS:
        if isinstance(inner := schema.get(name), list):
            yield from ((f"{name}[{number}]", each) for number, each in enumerate(inner))
    for name in _SINGLE:
        if isinstance(inner := schema.get(name), dict):
            yield name, inner


def without_annotations(schema: Any) -> Any:
    """The schema without what the library refuses although it demands nothing.

    That is a format which only describes, such as pydantic's `path`; names of properties that may be any
    strings, as in zod's records; and items that need not differ.
    """
    if not isinstance(schema, Mapping):
        return schema
    return {key: _inner(key, value) for key, value in schema.items() if not _is_annotation(key, value)}


def _is_annotation(key: str, value: Any) -> bool:
    if key == "format":
        return isinstance(value, str) and value not in FORMATS
    return (key, value) in (("propertyNames", {"type": "string"}), ("uniqueItems", False))


def _inner(key: str, value: Any) -> Any:
    if key in _MAPPINGS and isinstance(value, dict):
        return {name: without_annotations(each) for name, each in value.items()}
    if key in _LISTS and isinstance(value, list):
        return [without_annotations(each) for each in value]
    return without_annotations(value) if key in _SINGLE else value
