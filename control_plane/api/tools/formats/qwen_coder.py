"""Tool calls as Qwen3-Coder writes them, with a tag for each argument.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

A value is plain text if the tool's schema says that it is a string; otherwise it is JSON.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Self

from control_plane.api.tools.parsing.grammar import Token, arguments_schema, repeated
from control_plane.api.tools.parsing.source import NotACall, Parse, Source
from control_plane.api.tools.parsing.tool_format import ToolFormat, Tools
from control_plane.api.tools.parsing.writer import CallWriter
from control_plane.engine.grammar.lark import json_value, literal, rule

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _PARAMETER = "<function=", "<parameter="
_VALUE_END = "\n</parameter>"
_VALUE_ENDS = (_VALUE_END, _VALUE_END.strip())


class QwenCoder(ToolFormat):
    """See `ToolFormat`."""

    name = "of Qwen3-Coder"
    marks = (OPEN, _FUNCTION)
    tokens = (OPEN, CLOSE)

    @classmethod
    def of(cls, template: str) -> Self | None:
        """The format, if a chat template uses it."""
        return cls() if _FUNCTION in template and _PARAMETER in template else None

    def read(self, source: Source, calls: CallWriter, tools: Tools) -> Parse[None]:
        """See `ToolFormat`. Models sometimes leave out the outer mark."""
        if (yield from source.accept(OPEN)):
            yield from source.skip_space()
        yield from source.expect(_FUNCTION)
        name = yield from _read_tag(source)
        properties = next((_properties(tool) for tool in tools if tool["name"] == name), {})
        calls.begin(name)
        calls.arguments("{")
        yield from source.skip_space()
        between = ""
        while (yield from source.accept(_PARAMETER)):
            key = yield from _read_tag(source)
            calls.arguments(f"{between}{json.dumps(key, ensure_ascii=False)}: ")
            between = ", "
            yield from _read_value(source, calls, properties.get(key))
            yield from source.skip_space()
        yield from source.expect("</function>")
        calls.arguments("}")
        calls.end()
        yield from source.skip_space()
        yield from source.accept(CLOSE)

    def grammar(self, tools: Tools, token: Token, several: bool) -> str:
        """See `ToolFormat`. Of a string's schema it enforces `enum` and `const` only."""
        names = [f"tool_{number}" for number in range(len(tools))]
        bodies = "".join(map(_body_rules, names, tools))
        call = f'{token(OPEN)} "\\n" tool "\\n" {token(CLOSE)}'
        return repeated("\n", several) + rule("call", [call]) + rule("tool", names) + bodies


def _read_tag(source: Source) -> Parse[str]:
    name: list[str] = []
    yield from source.until((">",), name.append)
    if not "".join(name).strip():
        raise NotACall
    return "".join(name)


def _read_value(source: Source, calls: CallWriter, schema: Any) -> Parse[None]:
    """Read a value and write it as JSON: a string while it arrives, other values when they are complete."""
    yield from source.accept("\n")
    if _is_string(schema):
        calls.arguments('"')
        yield from source.until(_VALUE_ENDS, lambda text: calls.arguments(_escaped(text)))
        calls.arguments('"')
        return
    text: list[str] = []
    yield from source.until(_VALUE_ENDS, text.append)
    calls.arguments(_as_json("".join(text)))


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _as_json(text: str) -> str:
    """The value as JSON: a string if it is not JSON itself."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        # Some templates render arguments as Python does, so models write Python's names.
        value = {"True": True, "False": False, "None": None}.get(text.strip(), text)
        return json.dumps(value, ensure_ascii=False)


def _is_string(schema: Any) -> bool:
    return isinstance(schema, Mapping) and (
        schema.get("type") == "string"
        or (
            "type" not in schema
            and "enum" in schema
            and all(isinstance(value, str) for value in schema["enum"])
        )
    )


def _properties(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = arguments_schema(tool).get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _body_rules(name: str, tool: Mapping[str, Any]) -> str:
    """The rules for calls of a tool: its arguments in the order of its schema."""
    schema = arguments_schema(tool)
    required = schema.get("required", ())
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    parts, rules = [literal(f"{_FUNCTION}{tool['name']}>\n")], ""
    for number, (key, value) in enumerate(_properties(tool).items()):
        argument = f"{name}_{number}"
        parts.append(argument if key in required else f"{argument}?")
        head = literal(f"{_PARAMETER}{key}>\n")
        rules += rule(argument, [f"{head} {argument}_value"])
        rules += "".join(_value_rules(f"{argument}_value", value, definitions))
    parts.append(literal("</function>"))
    return rule(name, [" ".join(parts)]) + rules


def _value_rules(name: str, schema: Any, definitions: Mapping[str, Any]) -> Iterator[str]:
    end = f"{_VALUE_END}\n"
    if not _is_string(schema):
        whole = {**schema, **definitions} if isinstance(schema, Mapping) else schema
        yield rule(name, [f"{json_value(whole)} {literal(end)}"])
    elif "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        yield rule(name, [f"({' | '.join(map(literal, values))}) {literal(end)}"])
    else:
        yield f"{name}[suffix={literal(end)}]: /(?s:.*)/\n"
