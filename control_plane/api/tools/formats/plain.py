"""Tool calls as JSON without marks, for models without a format of their own."""

from control_plane.api.tools.parsing.grammar import Token, call_object, repeated, rule
from control_plane.api.tools.parsing.json_text import read_call
from control_plane.api.tools.parsing.source import Parse, Source
from control_plane.api.tools.parsing.tool_format import ToolFormat, Tools
from control_plane.api.tools.parsing.writer import CallWriter


class Plain(ToolFormat):
    """See `ToolFormat`. Only an answer that begins with a call of a known tool has calls."""

    marks = ("{",)
    tokens = ()
    only_first = True

    def read(self, source: Source, calls: CallWriter, tools: Tools) -> Parse[None]:
        """See `ToolFormat`."""
        yield from read_call(source, calls, {tool["name"] for tool in tools})

    def grammar(self, tools: Tools, token: Token, several: bool) -> str:
        """See `ToolFormat`."""
        return repeated("\n", several) + rule("call", map(call_object, tools))
