"""Tool calls as Hermes, Qwen2.5 and Qwen3 write them.

<tool_call>
{"name": ..., "arguments": {...}}
</tool_call>
"""

from control_plane.api.tools.parsing.grammar import Token, call_object, repeated, rule
from control_plane.api.tools.parsing.json_text import read_call
from control_plane.api.tools.parsing.source import Parse, Source
from control_plane.api.tools.parsing.tool_format import Tools, openai_id
from control_plane.api.tools.parsing.writer import CallWriter

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Hermes:
    """See `ToolFormat`."""

    marks = (OPEN,)
    tokens = (OPEN, CLOSE)
    only_first = False

    @staticmethod
    def recognises(template: str) -> bool:
        """Whether a chat template has this format. GLM's has the same marks around another."""
        return OPEN in template and "<arg_key>" not in template

    def new_id(self) -> str:
        """See `ToolFormat`."""
        return openai_id()

    def read(self, source: Source, calls: CallWriter, tools: Tools) -> Parse[None]:
        """See `ToolFormat`."""
        yield from source.expect(OPEN)
        yield from source.skip_space()
        yield from read_call(source, calls)
        yield from source.skip_space()
        yield from source.accept(CLOSE)

    def grammar(self, tools: Tools, token: Token, several: bool) -> str:
        """See `ToolFormat`."""
        body = rule("body", map(call_object, tools))
        call = f'{token(OPEN)} "\\n" body "\\n" {token(CLOSE)}'
        return repeated("\n", several) + rule("call", [call]) + body
