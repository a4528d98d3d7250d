"""Checks data from outside against declared types, and reports faults in plain English.

msgspec (https://jcristharif.com/msgspec) does the checking. A field's `Meta(description="a list of names")`
becomes the error's text, "must be a list of names"; without one, the text is derived from msgspec's.

Do not declare a union of a list and a str with a pattern: msgspec 0.22 then crashes in garbage collection.
"""

import re
import reprlib
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from control_plane.errors import ConfigError

T = TypeVar("T")

UNKNOWN_FIELD = "is not a known field"
"""The `problem` of a field that the type does not declare."""
MAX_QUOTED = 80
"""The most characters of a rejected value that an error repeats."""

_SHORT = reprlib.Repr()
"""Shortens what is in a value, too: a nested value's whole text may be longer than the memory."""
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = MAX_QUOTED

_AT = re.compile(r" - at `(key` in `)?\$\.?(.*)`$", re.DOTALL)
_FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)
_CHOICE = re.compile(r"Invalid (?:enum )?value (.*)", re.DOTALL)
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
    """Data does not have the declared form."""

    def __init__(self, path: str, problem: str) -> None:
        """`path` locates the fault, as "tenants[0].weight", or "" for the whole; `problem` describes it."""
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


def convert(data: object, kind: type[T]) -> T:
    """Convert `data`, as a JSON or YAML parser returns it, to a type that msgspec supports.

    Raises `Invalid` for the first fault.
    """
    try:
        return msgspec.convert(data, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), kind) from None
    except UnicodeEncodeError:
        # A key, or a value with a fixed set of choices; JSON can escape half of a surrogate pair.
        raise Invalid("", "is not Unicode: it has half of a surrogate pair") from None


def quoted(value: object) -> str:
    """A rejected value for an error's text, cut to `MAX_QUOTED` characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def check_settings(settings: Mapping[str, object], types: Mapping[str, Any]) -> None:
    """Check settings by name. Raises `ConfigError`: "NAME must be ..., not VALUE"."""
    for name, value in settings.items():
        if name not in types:
            raise ConfigError(f"unknown setting {quoted(name)}; there are {', '.join(types)}")
        try:
            convert(value, types[name])
        except Invalid as error:
            raise ConfigError(f"{name} {error.problem}, not {quoted(value)}") from None


def _invalid(message: str, kind: type) -> Invalid:
    found = _AT.search(message)
    path = found[2] if found else ""
    text = message[: found.start()] if found else message
    if field := _FIELD.fullmatch(text):
        where = f"{path}.{field[2]}" if path else field[2]
        return Invalid(where, "is missing" if field[1].startswith("missing") else UNKNOWN_FIELD)
    declared, description = _declared(kind, path)
    if description:
        return Invalid(path, f"must be {description}")
    if choice := _CHOICE.fullmatch(text):
        literals = [bare for bare in _bare(declared) if get_origin(bare) is Literal]
        values = [value for literal in literals for value in get_args(literal)] or _tags(kind, path)
        choices = ", ".join(map(repr, values))
        return Invalid(path, f"{choice[1][:MAX_QUOTED]} is not supported, only {choices}")
    return Invalid(path, _plain(text))


def _tags(kind: Any, path: str) -> list[object]:
    """The values of the field at `path` that tell apart the types of a union."""
    parent, _, field = path.rpartition(".")
    configs = [getattr(bare, "__struct_config__", None) for bare in _bare(_declared(kind, parent)[0])]
    return [config.tag for config in configs if config is not None and config.tag_field == field]


def _plain(text: str) -> str:
    """Reword an error of msgspec's for a person who writes JSON or YAML."""
    if not (wrong := _WRONG_TYPE.fullmatch(text)):
        return text
    nouns = " or ".join(_NOUNS.get(part, part) for part in wrong[1].split(" | ") if part != "null")
    bound = wrong[3].strip()
    for sign, words in _BOUNDS.items():
        bound = re.sub(rf"(?:of (length) )?{sign} (\S+)", rf"of \1 {words} \2", bound)
    return " ".join(f"must be {nouns} {bound}".split())


def _declared(kind: Any, path: str) -> tuple[Any, str | None]:
    """The type at `path`, and its description. An element inherits its list's."""
    description = _description(kind)
    for part in _PATH_PART.findall(path):
        kind = _inner(kind, part)
        description = _description(kind) or (description if part.startswith("[") else None)
    return kind, description


def _inner(kind: Any, part: str) -> Any:
    """The type of a field, or of an element, of a type."""
    for bare in _bare(kind):
        arguments = get_args(bare)
        if part.startswith("["):
            if arguments:
                return arguments[-1] if get_origin(bare) is not tuple else arguments[0]
        elif isinstance(bare, type) and hasattr(bare, "__annotations__"):
            renamed = getattr(bare, "__struct_encode_fields__", ())
            names = dict(zip(renamed, getattr(bare, "__struct_fields__", ()), strict=True))
            hints = get_type_hints(bare, include_extras=True)
            # Of a union's types, one that has the field.
            if (name := names.get(part, part)) in hints:
                return hints[name]
        elif isinstance(get_origin(bare), type) and issubclass(get_origin(bare), Mapping):
            return arguments[1]
    return None


def _description(kind: Any) -> str | None:
    for option in get_args(kind) if _is_union(kind) else (kind,):
        if get_origin(option) is Annotated:
            for meta in option.__metadata__:
                if description := getattr(meta, "description", None):
                    return str(description)
    return None


def _bare(kind: Any) -> Iterator[Any]:
    """The alternatives of a type, without annotations."""
    if get_origin(kind) is Annotated:
        yield from _bare(get_args(kind)[0])
    elif _is_union(kind):
        for option in get_args(kind):
            yield from _bare(option)
    else:
        yield kind


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)
