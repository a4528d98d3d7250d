"""Tool calls as Hermes, Qwen2.5 and Qwen3 write them.

<tool_call>
{"name": ..., "arguments": {...}}
</tool_call>
"""

from typing import Self

from control_plane.api.tools.parsing.grammar import Token, call_object, repeated
from control_plane.api.tools.parsing.json_text import read_call
from control_plane.api.tools.parsing.source import Parse, Source
from control_plane.api.tools.parsing.tool_format import ToolFormat, Tools
from control_plane.api.tools.parsing.writer import CallWriter
from control_plane.engine.grammar.lark import rule

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Hermes(ToolFormat):
    """See `ToolFormat`."""

    name = "of Hermes, Qwen2.5 and Qwen3"
    marks = (OPEN,)
    tokens = (OPEN, CLOSE)

    @classmethod
    def of(cls, template: str) -> Self | None:
        """The format, if a chat template uses it. GLM's format has the same marks without JSON."""
        return cls() if OPEN in template and "<arg_key>" not in template else None

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
