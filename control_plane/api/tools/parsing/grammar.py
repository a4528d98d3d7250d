"""Builds parts of grammars in llguidance's dialect of Lark."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from control_plane.api.bodies.schemas import without_annotations

Token = Callable[[str], str]
"""Returns the expression that matches a mark in a grammar: its token if it has one, or else its text."""


def literal(text: str) -> str:
    """An expression that matches exactly this text."""
    return json.dumps(text, ensure_ascii=False)


def rule(name: str, alternatives: Iterable[str]) -> str:
    """A rule that matches any of the alternatives."""
    return f"{name}: {' | '.join(alternatives)}\n"


def json_value(schema: Mapping[str, Any]) -> str:
    """An expression that matches the JSON values that a schema allows."""
    return f"%json {json.dumps(without_annotations(schema))}"


def arguments_schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a tool's arguments, which are an object: an empty one if the tool declares no schema."""
    schema = tool.get("parameters")
    if not isinstance(schema, Mapping):
        schema = {"properties": {}, "additionalProperties": False}
    return {**schema, "type": "object"}


def arguments_schemas(tools: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The schemas of the arguments of a request's tools, by the tools' names."""
    functions = [tool["function"] for tool in tools]
    return {function["name"]: arguments_schema(function) for function in functions}


def call_object(tool: Mapping[str, Any]) -> str:
    """An expression that matches a call of a tool: a JSON object with its name, then its arguments."""
    head = f'{{"name": {json.dumps(tool["name"])}, "arguments": '
    return f"{literal(head)} {json_value(arguments_schema(tool))} {literal('}')}"


def repeated(separator: str, several: bool) -> str:
    """The rule `calls`: one `call`, or with `several`, any number of them with a separator between them."""
    return rule("calls", [f"call ({literal(separator)} call)*" if several else "call"])
