"""Reads the bodies of requests. A field that is null counts as absent."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from msgspec import Struct

from control_plane.api.bodies.values import Text
from control_plane.errors import BadRequest
from control_plane.validation import MAX_QUOTED, UNKNOWN_FIELD, Invalid, convert

_LONG_LISTS = ("messages", "tools", "input", "system")
"""Fields in which an error names the place, too."""
_MAX_WHOLE_FLOAT = 2.0**53

Neutral = Mapping[str, tuple[object, ...]]
"""Names of fields, each with the values that ask for nothing."""


class Body(Struct):
    """The body of any request. Unknown fields are ignored."""

    neutral: ClassVar[Neutral] = {}
    """Fields that would change the answer and are not supported: other values are refused."""
    ignored: ClassVar[Neutral] = {}
    """Fields that clients send and that change nothing here: other values have no effect."""
    model: Text | None = None
    """Whether there is one of that name is for `ServedModels` to say."""


AnyBody = TypeVar("AnyBody", bound=Body)


def decode_json(body: bytes) -> Any:
    """Decode a body. Raises `BadRequest`, also for an object that has a key twice."""
    try:
        return json.loads(body, object_pairs_hook=_object)
    # ValueError also covers invalid UTF-8 and numbers that are too long; RecursionError, lists too deep.
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses duplicate keys: a proxy that checks requests might read the other value."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object has a key twice")
    return fields


def read_body(body: object, kind: type[AnyBody]) -> AnyBody:
    """Convert a decoded JSON body; unknown fields are left out.

    Raises `BadRequest`, whose `param` is the field at fault.
    """
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    fields = {name: _whole(value) for name, value in body.items() if value is not None}
    for name, neutral in kind.neutral.items():
        if name in fields and not _is_one_of(fields.pop(name), neutral):
            raise field_error(name, "this value is not supported; leave the field out")
    if "stream_options" in fields:
        fields["stream_options"] = without_nulls(fields["stream_options"])
    if isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [without_nulls(message) for message in messages]
    # Not a union in the type: msgspec 0.22 crashes on a union of a list and a str with a pattern.
    if isinstance(stop := fields.get("stop"), str):
        fields["stop"] = [stop]
    try:
        return convert(fields, kind)
    except Invalid as error:
        if not error.path:
            raise BadRequest(f"the body {error.problem}") from error
        unknown = error.problem == UNKNOWN_FIELD
        problem = "this field is not supported" if unknown else error.problem
        path = error.path[:MAX_QUOTED]
        # Elsewhere the field is enough.
        place = path if path.startswith(_LONG_LISTS) else path.partition("[")[0]
        raise field_error(place, problem) from error


def ignored_fields(body: Mapping[str, Any], kind: type[Body]) -> list[str]:
    """The fields of a body of that kind that ask for something and have no effect."""
    known = {*kind.__struct_fields__, *kind.neutral}
    return [
        name
        for name, value in body.items()
        if name not in known and value is not None and not _is_one_of(value, kind.ignored.get(name, ()))
    ]


def field_error(path: str, problem: str) -> BadRequest:
    """The error for the field at `path`; its `param` leaves out where in a list the fault is."""
    return BadRequest(f"{path}: {problem}", path.partition("[")[0])


def without_nulls(value: Any) -> Any:
    """Leave out an object's null fields; return other values unchanged."""
    if not isinstance(value, dict):
        return value
    return {name: field for name, field in value.items() if field is not None}


def _whole(value: Any) -> Any:
    """JSON does not tell 12.0 from 12, and some clients write all numbers alike."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < _MAX_WHOLE_FLOAT
    return int(value) if is_whole else value


def _is_one_of(value: object, neutral: tuple[object, ...]) -> bool:
    # In Python, unlike in JSON, 0 equals false.
    return any(value == good and isinstance(value, bool) == isinstance(good, bool) for good in neutral)
