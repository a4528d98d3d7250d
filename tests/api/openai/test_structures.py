"""What an answer has to match is read from OpenAI's field, and from vLLM's of old and new."""

import json
from typing import Any

import pytest

from control_plane.api.text.request import Structure
from control_plane.errors import BadRequest
from tests.support.openai_bodies import chat, completion

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
OF_SCHEMA = Structure("json_schema", SCHEMA)


def json_schema(**fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": fields}}


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize(
    ("fields", "structure"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Structure("json_object")),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, OF_SCHEMA),
        (json_schema(name="answer", schema=SCHEMA, strict=True, description="b"), OF_SCHEMA),
        (json_schema(name="answer", schema=SCHEMA, strict=None), OF_SCHEMA),
        (json_schema(name="answer", schema={}), Structure("json_schema", {})),
        (json_schema(name="answer"), Structure("json_object")),
        ({"structured_outputs": {"json": SCHEMA}}, OF_SCHEMA),
        ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, OF_SCHEMA),
        ({"structured_outputs": {"json_object": True}}, Structure("json_object")),
        ({"structured_outputs": {"regex": "a+"}}, Structure("regex", "a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Structure("choice", ["a", "b"])),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, Structure("grammar", 'root ::= "a"')),
        ({"guided_json": SCHEMA}, OF_SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, OF_SCHEMA),
        ({"guided_regex": "a+"}, Structure("regex", "a+")),
        ({"guided_choice": ["a"]}, Structure("choice", ["a"])),
        ({"guided_grammar": "x"}, Structure("grammar", "x")),
        ({"guided_regex": "a+", "response_format": {"type": "text"}}, Structure("regex", "a+")),
    ],
)
def test_structures(parse: Any, fields: dict[str, Any], structure: Structure | None) -> None:
    request = parse(**fields)
    assert (request.structure, request.ignored_fields) == (structure, ())


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


def test_calls_that_have_to_be_made_need_no_other_structure() -> None:
    """An answer that may call tools either does, or has a text that matches, as in OpenAI's API."""
    forced = {"type": "function", "function": {"name": "f"}}
    wanted = {"none": OF_SCHEMA, "auto": OF_SCHEMA, "required": None}
    for choice, structure in wanted.items():
        assert chat(tools=[TOOL], tool_choice=choice, guided_json=SCHEMA).structure == structure
    assert chat(tools=[TOOL], tool_choice=forced, guided_json=SCHEMA).structure is None
