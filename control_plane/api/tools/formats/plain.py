"""Tool calls as JSON without marks, for models without a format of their own."""

from collections.abc import Mapping
from typing import Any

from control_plane.api.tools.parsing.grammar import Token, arguments_schema, call_object, repeated
from control_plane.api.tools.parsing.json_text import read_call
from control_plane.api.tools.parsing.source import Parse, Source
from control_plane.api.tools.parsing.tool_format import ToolFormat, Tools
from control_plane.api.tools.parsing.writer import CallWriter
from control_plane.engine.grammar.lark import json_value, rule


class Plain(ToolFormat):
    """See `ToolFormat`. Only an answer that begins with a call of a known tool has calls."""

    name = "of JSON without marks"
    marks = ("{",)
    tokens = ()
    only_first = True

    def read(self, source: Source, calls: CallWriter, tools: Tools) -> Parse[None]:
        """See `ToolFormat`."""
        yield from read_call(source, calls, {tool["name"] for tool in tools})

    def grammar(self, tools: Tools, token: Token, several: bool) -> str:
        """See `ToolFormat`."""
        return repeated("\n", several) + rule("call", map(call_object, tools))

    def grammar_beside_json(self, tools: Tools, token: Token, several: bool) -> str:
        """See `ToolFormat`. A text `{"name": ...` beside JSON would keep objects from beginning with `{"`."""
        return repeated("\n", several) + rule("call", (json_value(_call_schema(tool)) for tool in tools))


def _call_schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a call, its name first."""
    arguments = {name: value for name, value in arguments_schema(tool).items() if name != "$schema"}
    return {
        "type": "object",
        # With an id, references in the schema of the arguments are to this schema, not to the whole.
        "properties": {"name": {"const": tool["name"]}, "arguments": {**arguments, "$id": "urn:arguments"}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
