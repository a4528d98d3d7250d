"""Writes parts of grammars in llguidance's dialect of Lark."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from control_plane.engine.grammar.schemas import without_annotations

_JSON_OPTIONS = {"whitespace_pattern": r" |\n {0,16}"}
"""Between the parts of JSON, a model may write a space, or a line break with an indentation.

The library's default allows any number of spaces: some models would write them up to the limit of tokens.
"""


def literal(text: str) -> str:
    """An expression that matches exactly this text."""
    return json.dumps(text, ensure_ascii=False)


def rule(name: str, alternatives: Iterable[str]) -> str:
    """A rule that matches any of the alternatives."""
    return f"{name}: {' | '.join(alternatives)}\n"


def json_value(schema: Any) -> str:
    """An expression that matches the JSON values that a schema allows."""
    if isinstance(schema, Mapping):
        schema = {**without_annotations(schema), "x-guidance": _JSON_OPTIONS}
    return f"%json {json.dumps(schema)}"


def whole(grammar: str) -> str:
    """An expression that matches what a whole grammar does, whose names are its own."""
    return f"%lark {{\n{grammar}\n}}"
