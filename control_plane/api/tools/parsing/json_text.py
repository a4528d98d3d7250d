"""Reads JSON that arrives in pieces, and passes it on without splitting an escape or a number."""

import json
import re
from collections.abc import Container

from control_plane.api.tools.parsing.source import NotACall, Parse, Source, Write
from control_plane.api.tools.parsing.writer import CallWriter

MAX_DEPTH = 64
"""The most levels of nested values. Text that is nested more deeply is not a call."""
_ESCAPES = '"\\/bfnrt'
_DIGITS = "0123456789"
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
"""Characters of a string that stand for themselves."""
_ARGUMENTS = ("arguments", "parameters")
"""The keys under which models write a call's arguments."""


def read_call(source: Source, calls: CallWriter, known: Container[str] | None = None) -> Parse[None]:
    """Read `{"name": ..., "arguments": {...}}`. Arguments that come before the name wait for it.

    `known` are the names of all tools; if it is given, other names and keys are refused. Raises `NotACall`.
    """
    waiting: list[str] = []
    yield from source.expect("{")
    more = not (yield from _closes(source, "}"))
    while more:
        key = yield from _read_string(source)
        yield from _colon(source)
        if key == "name" and not calls.open:
            name = yield from _read_string(source)
            if known is not None and name not in known:
                raise NotACall
            calls.begin(name)
            if waiting:
                calls.arguments("".join(waiting))
        elif key in _ARGUMENTS and not waiting:
            waiting = yield from _read_arguments(source, calls)
        elif known is None:
            yield from read_value(source, lambda text: None)
        else:
            raise NotACall
        more = yield from _continues(source, "}")
    if not calls.open:
        raise NotACall
    if not waiting:
        calls.arguments("{}")
    calls.end()


def read_value(source: Source, write: Write, depth: int = MAX_DEPTH) -> Parse[None]:
    """Read a value, and write its text. Control characters in strings are escaped, as JSON wants them."""
    first = yield from source.peek()
    if first == "{" and depth:
        yield from _members(source, write, depth - 1)
    elif first == "[" and depth:
        yield from _items(source, write, depth - 1)
    elif first == '"':
        yield from _string(source, write)
    elif first in "tfn":
        word = {"t": "true", "f": "false", "n": "null"}[first]
        yield from source.expect(word)
        write(word)
    else:
        yield from _number(source, write)


def read_object(source: Source, write: Write) -> Parse[None]:
    """Read an object, and write its text. Raises `NotACall` for any other value."""
    if (yield from source.peek()) != "{":
        raise NotACall
    yield from read_value(source, write)


def _read_arguments(source: Source, calls: CallWriter) -> Parse[list[str]]:
    """Read the arguments, for the open call if there is one; returns their text."""
    text: list[str] = []

    def write(part: str) -> None:
        text.append(part)
        if calls.open:
            calls.arguments(part)

    yield from read_object(source, write)
    return text


def _read_string(source: Source) -> Parse[str]:
    text: list[str] = []
    yield from _string(source, text.append)
    return str(json.loads("".join(text)))


def _members(source: Source, write: Write, depth: int) -> Parse[None]:
    yield from source.expect("{")
    write("{")
    more = not (yield from _closes(source, "}"))
    while more:
        yield from _string(source, write)
        yield from _colon(source)
        write(": ")
        yield from read_value(source, write, depth)
        more = yield from _continues(source, "}")
        write(", " if more else "")
    write("}")


def _items(source: Source, write: Write, depth: int) -> Parse[None]:
    yield from source.expect("[")
    write("[")
    more = not (yield from _closes(source, "]"))
    while more:
        yield from read_value(source, write, depth)
        more = yield from _continues(source, "]")
        write(", " if more else "")
    write("]")


def _closes(source: Source, end: str) -> Parse[bool]:
    """Whether the object or list ends here, so that it is empty."""
    yield from source.skip_space()
    return (yield from source.accept(end))


def _continues(source: Source, end: str) -> Parse[bool]:
    """Read a comma or the end; returns whether it is a comma."""
    yield from source.skip_space()
    character = yield from source.next()
    if character not in ("," + end):
        raise NotACall
    if character == ",":
        yield from source.skip_space()
        return True
    return False


def _colon(source: Source) -> Parse[None]:
    yield from source.skip_space()
    yield from source.expect(":")
    yield from source.skip_space()


def _string(source: Source, write: Write) -> Parse[None]:
    yield from source.expect('"')
    write('"')
    while (character := (yield from source.next())) != '"':
        if character == "\\":
            yield from _escape(source, write)
        else:
            write(json.dumps(character)[1:-1] if character < " " else character + source.take(_PLAIN))
    write('"')


def _escape(source: Source, write: Write) -> Parse[None]:
    """Write an escape as a whole: half of one would not be valid JSON."""
    character = yield from source.next()
    if character == "u":
        for _ in range(4):
            digit = yield from source.next()
            if digit not in "0123456789abcdefABCDEF":
                raise NotACall
            character += digit
    elif character not in _ESCAPES:
        raise NotACall
    write("\\" + character)


def _number(source: Source, write: Write) -> Parse[None]:
    """Read a number, up to the first character that cannot belong to it, and write it as a whole."""
    text = ""
    while (yield from source.peek()) in "+-.eE" + _DIGITS:
        text += yield from source.next()
    try:
        json.loads(text)
    except ValueError:
        raise NotACall from None
    write(text)
