"""Checks data that comes from outside against declared types, and says what is wrong in plain English.

msgspec (https://jcristharif.com/msgspec) does the checking. A field's `Meta(description="a number from 0 to
2")` becomes the error's text, "must be a number from 0 to 2"; without one, the text is made from msgspec's
own.
"""

import re
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from control_plane.errors import ConfigError

T = TypeVar("T")

_AT = re.compile(r" - at `(key` in `)?\$\.?(.*)`$", re.DOTALL)
_FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)
_WRONG_TYPE = re.compile(r"Expected `([^`]*)`(, got `[^`]*`)?(.*)", re.DOTALL)
_PATH_PART = re.compile(r"\[[^\]]*\]|[^.\[]+")
_NOUNS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_BOUNDS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


class Invalid(ValueError):
    """Data that does not have the declared form."""

    def __init__(self, path: str, problem: str) -> None:
        """`path` is where, such as "tenants[0].weight", or "" for the whole; `problem` says what is wrong."""
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


def convert(data: object, kind: type[T], *, lax_numbers: bool = False) -> T:
    """`data`, as a JSON or YAML parser returns it, as a value of a type that msgspec knows.

    `lax_numbers` also takes numbers that are written as text. Raises `Invalid` for the first fault.
    """
    try:
        return msgspec.convert(data, kind, strict=not lax_numbers, str_keys=True)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), kind) from None


def check_settings(settings: Mapping[str, object], types: Mapping[str, Any]) -> None:
    """Check settings by name. Raises `ConfigError`: "NAME must be ..., not VALUE"."""
    for name, value in settings.items():
        if name not in types:
            raise ConfigError(f"unknown setting {name!r}; there are {', '.join(types)}")
        try:
            convert(value, types[name])
        except Invalid as error:
            raise ConfigError(f"{name} {error.problem}, not {value!r}") from None


def _invalid(message: str, kind: type) -> Invalid:
    found = _AT.search(message)
    path = found[2] if found else ""
    text = message[: found.start()] if found else message
    if field := _FIELD.fullmatch(text):
        where = f"{path}.{field[2]}" if path else field[2]
        return Invalid(where, "is missing" if field[1].startswith("missing") else "is not a known field")
    described = _description(kind, path)
    return Invalid(path, f"must be {described}" if described else _plain(text))


def _plain(text: str) -> str:
    """msgspec's text in the words of a person who writes JSON or YAML."""
    if not (wrong := _WRONG_TYPE.fullmatch(text)):
        return text
    nouns = " or ".join(_NOUNS.get(part, part) for part in wrong[1].split(" | ") if part != "null")
    bound = wrong[3].strip()
    for sign, words in _BOUNDS.items():
        bound = re.sub(rf"(?:of (length) )?{sign} (\S+)", rf"of \1 {words} \2", bound)
    return " ".join(f"must be {nouns} {bound}".split())


def _description(kind: Any, path: str) -> str | None:
    """The description of the innermost type on the path that has one."""
    described = None
    for part in ["", *_PATH_PART.findall(path)]:
        if part:
            kind = _inner(kind, part)
        for option in _options(kind):
            if get_origin(option) is Annotated:
                for meta in option.__metadata__:
                    described = getattr(meta, "description", None) or described
    return described


def _inner(kind: Any, part: str) -> Any:
    """The type of a field, or of an element, of a type."""
    for option in _options(kind):
        bare = get_args(option)[0] if get_origin(option) is Annotated else option
        arguments = get_args(bare)
        if part.startswith("["):
            if arguments:
                return arguments[-1] if get_origin(bare) is not tuple else arguments[0]
        elif isinstance(bare, type) and hasattr(bare, "__annotations__"):
            return get_type_hints(bare, include_extras=True).get(part)
        elif isinstance(get_origin(bare), type) and issubclass(get_origin(bare), Mapping):
            return arguments[1]
    return None


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
