"""Tool calls as Mistral's models write them.

Older ones write a list, `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`; newer ones write
`[TOOL_CALLS]name[ARGS]{...}` for each call, some with `[CALL_ID]` and an id after the name.
"""

from dataclasses import dataclass
from typing import Self

from control_plane.api.tools.parsing.grammar import Token, arguments_schema, call_object, repeated
from control_plane.api.tools.parsing.json_text import read_call, read_object
from control_plane.api.tools.parsing.source import SPACE, NotACall, Parse, Source
from control_plane.api.tools.parsing.tool_format import ToolFormat, Tools, random_id
from control_plane.api.tools.parsing.writer import CallWriter
from control_plane.engine.grammar.lark import json_value, literal, rule

OPEN, ARGUMENTS, ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_MAX_NAME = 256
_ID_LENGTH = 9
"""Mistral's chat templates refuse ids of another length."""


@dataclass(frozen=True)
class Mistral(ToolFormat):
    """See `ToolFormat`."""

    writes_list: bool
    """Whether the model writes all calls as one list. Both forms are read."""
    name = "of Mistral"
    marks = (OPEN,)
    tokens = (OPEN, ARGUMENTS, ID)

    @classmethod
    def of(cls, template: str) -> Self | None:
        """The format, if a chat template uses it."""
        return cls(writes_list=ARGUMENTS not in template) if OPEN in template else None

    def new_id(self) -> str:
        """See `ToolFormat`."""
        return random_id(_ID_LENGTH)

    def read(self, source: Source, calls: CallWriter, tools: Tools) -> Parse[None]:
        """See `ToolFormat`."""
        yield from source.expect(OPEN)
        yield from source.skip_space()
        if (yield from source.peek()) == "[":
            yield from _read_list(source, calls)
        else:
            name = yield from _read_name(source)
            calls.begin(name)
            yield from read_object(source, calls.arguments)
            calls.end()

    def grammar(self, tools: Tools, token: Token, several: bool) -> str:
        """See `ToolFormat`."""
        if self.writes_list:
            objects = 'object (", " object)*' if several else "object"
            return rule("calls", [f'{token(OPEN)} "[" {objects} "]"']) + rule(
                "object", map(call_object, tools)
            )
        call = (
            f"{token(OPEN)} {literal(tool['name'])} {token(ARGUMENTS)} {json_value(arguments_schema(tool))}"
            for tool in tools
        )
        return repeated("", several) + rule("call", call)


def _read_list(source: Source, calls: CallWriter) -> Parse[None]:
    yield from source.expect("[")
    yield from source.skip_space()
    more = True
    while more:
        yield from read_call(source, calls)
        yield from source.skip_space()
        more = yield from source.accept(",")
        if more:
            source.mark()
            calls.expect()
            yield from source.skip_space()
    yield from source.accept("]")


def _read_name(source: Source) -> Parse[str]:
    """Read a name, and whatever is between it and its arguments."""
    text = ""
    while (yield from source.peek()) != "{":
        text += yield from source.next()
        if len(text) > _MAX_NAME:
            raise NotACall
    name = text.split("[", 1)[0].strip(SPACE)
    if not name or set(name) & set(SPACE):
        raise NotACall
    return name
