"""Turns a structure, which an answer has to match, into a grammar, and checks that it compiles."""

import json
import re
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark
from tokenizers import Tokenizer

from control_plane.engine.grammar.compiler import GrammarCompiler, Vocabulary
from control_plane.engine.grammar.lark import json_value, literal
from control_plane.engine.grammar.schemas import parts
from control_plane.errors import BadRequest

_PREFIX = "failed to compile JSON schema: "
_MAX_TRIALS = 300
"""The most schemas that are compiled to find the one with the error."""


_TOKEN_IDS = re.compile(r"<\[[0-9,^ -]+\]>")
_TOKEN = "<[257]>"
"""Stands for tokens that a grammar has by their ids: with all of a model's, a process would take 27 MB more.

A text that looks like such a token is tried as this text.
"""


class Grammars:
    """Makes grammars, and compiles them for a vocabulary of single bytes and a model's special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._compiler = GrammarCompiler(_vocabulary(tokenizer))

    def grammar(self, kind: str, value: Any, field: str) -> str:
        """The grammar for a `Structure`'s kind and value, from the request's field of that name.

        Raises `BadRequest`, which says what is wrong, and where.
        """
        try:
            grammar = _grammar(kind, value)
        except ValueError as error:
            raise BadRequest(f"{field}: {error}") from error
        try:
            self._compiler.compile(_TOKEN_IDS.sub(_TOKEN, grammar), field)
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
        inside = parts(schema)
        while (part := next(inside, None)) is not None and trials < _MAX_TRIALS:
            trials += 1
            name, inner = part
            if not self._compiles(inner, definitions):
                path, inside = f"{path}.{name}", parts(inner)
        return path

    def _compiles(self, schema: Any, definitions: Mapping[str, Any]) -> bool:
        whole = {"$defs": definitions, **schema} if isinstance(schema, dict) else schema
        try:
            self._compiler.compile(_json_grammar(whole), "")
        except (BadRequest, ValueError):
            return False
        return True


def _vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The bytes, an end token, a token for `_TOKEN`, and special tokens, which grammars may name."""
    added = tokenizer.get_added_tokens_decoder().values()
    special = [b"<end>", b"<token>", *(token.content.encode() for token in added if token.special)]
    all_bytes = [bytes([byte]) for byte in range(256)]
    return Vocabulary([*all_bytes, *special], frozenset(range(256, 256 + len(special))), frozenset({256}))


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
        return f"start: {' | '.join(map(literal, value))}"
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
    return f"start: {json_value(schema)}"
