"""Parts of grammars in the form of Lark that llguidance reads."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Token = Callable[[str], str]
"""Gives what matches a mark in a grammar: a token of its own, or its text."""


def literal(text: str) -> str:
    """What matches exactly this text."""
    return json.dumps(text, ensure_ascii=False)


def rule(name: str, alternatives: Iterable[str]) -> str:
    """A rule that matches any of the alternatives."""
    return f"{name}: {' | '.join(alternatives)}\n"


def json_value(schema: Mapping[str, Any]) -> str:
    """What matches JSON values of a schema."""
    return f"%json {json.dumps(schema)}"


def arguments_schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a tool's arguments, which are an object. Without one, there are none."""
    schema = tool.get("parameters")
    if not isinstance(schema, Mapping):
        schema = {"properties": {}, "additionalProperties": False}
    return {**schema, "type": "object"}


def call_object(tool: Mapping[str, Any]) -> str:
    """What matches a call of a tool as a JSON object with its name and arguments, in that order."""
    head = f'{{"name": {json.dumps(tool["name"])}, "arguments": '
    return f"{literal(head)} {json_value(arguments_schema(tool))} {literal('}')}"


def repeated(separator: str, several: bool) -> str:
    """The rule `calls`: one `call`, or `several` with a separator between them."""
    return rule("calls", [f"call ({literal(separator)} call)*" if several else "call"])
