"""What demands nothing is taken out of schemas, if the library that makes grammars refuses it."""

from typing import Any

import pytest
from llguidance import LLMatcher

from control_plane.engine.grammar.schemas import FORMATS, without_annotations

ANNOTATION = {"type": "string", "format": "path"}
"""As pydantic writes a path."""
STRING = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        (ANNOTATION, STRING),
        ({"type": "string", "format": "uuid"}, {"type": "string", "format": "uuid"}),
        # As zod writes a record.
        ({"propertyNames": STRING, "additionalProperties": ANNOTATION}, {"additionalProperties": STRING}),
        ({"propertyNames": {"pattern": "a"}}, {"propertyNames": {"pattern": "a"}}),
        ({"uniqueItems": False, "items": ANNOTATION}, {"items": STRING}),
        ({"uniqueItems": True}, {"uniqueItems": True}),
        ({"$defs": {"format": ANNOTATION}}, {"$defs": {"format": STRING}}),
        ({"anyOf": [ANNOTATION, {"type": "null"}]}, {"anyOf": [STRING, {"type": "null"}]}),
        # Properties and values of the same names are none of a schema's own.
        ({"properties": {"format": ANNOTATION}}, {"properties": {"format": STRING}}),
        ({"const": ANNOTATION, "enum": [ANNOTATION]}, {"const": ANNOTATION, "enum": [ANNOTATION]}),
        # What is not a schema is left to the library, which says what is wrong.
        ({"properties": [ANNOTATION], "format": []}, {"properties": [ANNOTATION], "format": []}),
        ({"anyOf": 1}, {"anyOf": 1}),
        (True, True),
    ],
)
def test_without_annotations(schema: Any, wanted: Any) -> None:
    assert without_annotations(schema) == wanted


def test_the_formats_that_count_are_those_that_the_library_knows() -> None:
    others = {"path", "binary", "password", "base64", "int32", "uri-reference", "regex", "json-pointer"}
    known = {name for name in FORMATS | others if not refusal(name)}
    assert known == FORMATS


def refusal(name: str) -> str:
    return str(LLMatcher.validate_grammar(f'start: %json {{"type": "string", "format": "{name}"}}'))
