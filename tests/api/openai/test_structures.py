"""What an answer has to match is read from OpenAI's field, and from vLLM's of old and new."""

import json
from typing import Any

import pytest

from control_plane.api.text.request import Structure
from control_plane.errors import BadRequest
from tests.support.api.openai_bodies import chat, completion

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TEXT = json.dumps(SCHEMA)
OF_SCHEMA = ("json_schema", SCHEMA)
GRAMMAR = 'root ::= "a"'


def json_schema(**fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": fields}}


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize(
    ("fields", "place", "kind", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format", "json_object", None),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "response_format", *OF_SCHEMA),
        (json_schema(name="b", schema=SCHEMA, strict=True, description="c"), "response_format", *OF_SCHEMA),
        (json_schema(name="answer", schema=SCHEMA, strict=None), "response_format", *OF_SCHEMA),
        (json_schema(name="answer", schema={}), "response_format", "json_schema", {}),
        (json_schema(name="answer"), "response_format", "json_object", None),
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json", *OF_SCHEMA),
        ({"structured_outputs": {"json": TEXT, "regex": None}}, "structured_outputs.json", *OF_SCHEMA),
        (
            {"structured_outputs": {"json_object": True}},
            "structured_outputs.json_object",
            "json_object",
            None,
        ),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex", "regex", "a+"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "structured_outputs.choice", "choice", ["a", "b"]),
        ({"structured_outputs": {"grammar": GRAMMAR}}, "structured_outputs.grammar", "grammar", GRAMMAR),
        ({"guided_json": SCHEMA}, "guided_json", *OF_SCHEMA),
        ({"guided_json": TEXT}, "guided_json", *OF_SCHEMA),
        ({"guided_regex": "a+"}, "guided_regex", "regex", "a+"),
        ({"guided_choice": ["a"]}, "guided_choice", "choice", ["a"]),
        ({"guided_grammar": "x"}, "guided_grammar", "grammar", "x"),
        ({"guided_regex": "a+", "response_format": {"type": "text"}}, "guided_regex", "regex", "a+"),
    ],
)
def test_structures(parse: Any, fields: dict[str, Any], place: str, kind: Any, value: Any) -> None:
    request = parse(**fields)
    assert (request.structure, request.ignored_fields) == (Structure(kind, place, value), ())


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}])
def test_answers_may_be_any_text(parse: Any, fields: dict[str, Any]) -> None:
    assert parse(**fields).structure is None


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object", "other": 1}}, "response_format.other"),
        (json_schema(schema=[]), "response_format.json_schema.schema"),
        (json_schema(schema={}, other=1), "response_format.json_schema.other"),
        (json_schema(schema={"maximum": 1 << 65}), "response_format"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[]"}, "guided_json"),
        ({"guided_json": "[" * 5000}, "guided_json"),
        ({"guided_json": True}, "guided_json"),
        ({"guided_json": {"description": "x" * (512 << 10)}}, "guided_json"),
        ({"guided_regex": 5}, "guided_regex"),
        ({"guided_regex": "x" * ((64 << 10) + 1)}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [""]}, "guided_choice"),
        ({"guided_choice": ["a"] * 1025}, "guided_choice"),
        ({"guided_choice": ["\ud800"]}, "guided_choice"),
        ({"guided_grammar": "\ud800"}, "guided_grammar"),
        ({"structural_tag": "{}"}, "structural_tag"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "guided_regex": "a"}, "guided_regex"),
        ({"response_format": {"type": "json_object"}, "guided_json": SCHEMA}, "guided_json"),
    ],
)
def test_wrong_structures(parse: Any, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(**fields)
    assert refused.value.param == field
    assert str(refused.value).startswith(f"{field}: ")
