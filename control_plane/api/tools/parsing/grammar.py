"""Builds the parts that grammars of tool calls have in common."""

from collections.abc import Callable, Mapping
from typing import Any

from control_plane.engine.grammar.lark import json_value, literal, rule

Token = Callable[[str], str]
"""Returns the expression that matches a mark in a grammar: its token if it has one, or else its text."""


def arguments_schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a tool's arguments, which are an object: an empty one if the tool declares no schema."""
    schema = tool.get("parameters")
    if not isinstance(schema, Mapping):
        schema = {"properties": {}, "additionalProperties": False}
    return {**schema, "type": "object"}


def call_object(tool: Mapping[str, Any]) -> str:
    """An expression that matches a call of a tool: a JSON object with its name, then its arguments."""
    head = literal(f'{{"name": {literal(tool["name"])}, "arguments": ')
    return f"{head} {json_value(arguments_schema(tool))} {literal('}')}"


def repeated(separator: str, several: bool) -> str:
    """The rule `calls`: one `call`, or with `several`, any number of them with a separator between them."""
    return rule("calls", [f"call ({literal(separator)} call)*" if several else "call"])
