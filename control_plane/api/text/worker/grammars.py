"""Turns a structure, which an answer has to match, into a grammar, and checks that it compiles."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from control_plane.engine.grammar.compiler import GrammarCompiler, Vocabulary
from control_plane.errors import BadRequest

JSON_OPTIONS = {"whitespace_pattern": r" |\n {0,16}"}
"""Between the parts of JSON, a model may write a space, or a line break with an indentation.

The library's default allows any number of spaces: some models would write them up to the limit of tokens.
"""
_BYTES = Vocabulary([*(bytes([byte]) for byte in range(256)), b"<end>"], frozenset({256}), frozenset({256}))
_TOKEN_IDS = re.compile(r"<\[[^\]]*\]>")
"""Where a grammar names tokens by their ids."""
_ANY_TOKEN = "<[256]>"
_PREFIX = "failed to compile JSON schema: "
_MAX_TRIALS = 300
"""The most schemas that are compiled to find the one with the error."""


class Grammars:
    """Makes grammars, and compiles them for a vocabulary of single bytes."""

    def __init__(self) -> None:
        self._compiler = GrammarCompiler(_BYTES)

    def grammar(self, kind: str, value: Any, field: str) -> str:
        """The grammar for a `Structure`'s kind and value, from the request's field of that name.

        Raises `BadRequest`, which says what is wrong, and where.
        """
        try:
            grammar = _grammar(kind, value)
        except ValueError as error:
            raise BadRequest(f"{field}: {error}") from error
        try:
            # The model's tokens are not among those of the bytes.
            self._compiler.compile(_TOKEN_IDS.sub(_ANY_TOKEN, grammar), field)
        except BadRequest as error:
            if kind != "json_schema":
                raise
            reason = str(error).removeprefix(f"{field}: ").splitlines()[0].rpartition(_PREFIX)[2]
            raise BadRequest(f"{field}: at {self._place(value)}: {reason}") from error
        return grammar

    def _place(self, schema: Any) -> str:
        """The path of the innermost part of a schema that does not compile on its own."""
        path, trials = "$", 0
        definitions = schema.get("$defs", {}) if isinstance(schema, dict) else {}
        parts = _parts(schema)
        while (part := next(parts, None)) is not None and trials < _MAX_TRIALS:
            trials += 1
            name, inner = part
            if not self._compiles(inner, definitions):
                path, parts = f"{path}.{name}", _parts(inner)
        return path

    def _compiles(self, schema: Any, definitions: Mapping[str, Any]) -> bool:
        whole = {"$defs": definitions, **schema} if isinstance(schema, dict) else schema
        try:
            self._compiler.compile(_json_grammar(whole), "")
        except (BadRequest, ValueError):
            return False
        return True


def _grammar(kind: str, value: Any) -> str:
    """Raises ValueError for a grammar that cannot be read."""
    if kind == "json_object":
        return _json_grammar({"type": "object"})
    if kind == "json_schema":
        return _json_grammar(value)
    if kind == "regex":
        (grammar,) = json.loads(LLMatcher.grammar_from_regex(value))["grammars"]
        return str(grammar["lark_grammar"])
    if kind == "choice":
        return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in value)
    try:
        return str(any_to_lark(value))
    # The library raises plain exceptions as well.
    except Exception as error:
        raise ValueError(str(error)) from error


def _json_grammar(schema: Any) -> str:
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ValueError("a schema is an object")
    return f"start: %json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS})}"


def _parts(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas directly inside a schema, each with its path."""
    if not isinstance(schema, dict):
        return
    for name in ("$defs", "properties", "patternProperties"):
        if isinstance(inner := schema.get(name), dict):
            yield from ((f"{name}.{key}", each) for key, each in inner.items())
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(inner := schema.get(name), list):
            yield from ((f"{name}[{number}]", each) for number, each in enumerate(inner))
    for name in ("items", "additionalProperties"):
        if isinstance(inner := schema.get(name), dict):
            yield name, inner
