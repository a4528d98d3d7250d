"""What an answer has to match: OpenAI's `response_format`, and vLLM's fields of old and new."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from control_plane.api.bodies.json_values import check_json
from control_plane.api.bodies.reading import Body, field_error
from control_plane.api.bodies.values import UNICODE, Object, Text
from control_plane.api.text.request import Structure

MAX_GRAMMAR_CHARACTERS = 64 << 10
"""The longest grammar or regular expression."""
_GRAMMAR = f"1 to {MAX_GRAMMAR_CHARACTERS} Unicode characters"

Grammar = Annotated[
    str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARACTERS, pattern=UNICODE, description=_GRAMMAR)
]
Alternatives = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=1024, pattern=UNICODE)]],
    Meta(min_length=1, max_length=1024, description="a list of 1 to 1024 texts of 1 to 1024 characters"),
]
Schema = Annotated[
    str | dict[str, Any], Meta(description="a JSON schema: an object, or its JSON as a string")
]


class JsonSchema(Struct, forbid_unknown_fields=True):
    """A named schema. Answers match it whether it is called strict or not."""

    name: Text | None = None
    description: Text | None = None
    schema: Object | None = None
    strict: bool | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True):
    """The form of an answer. `schema` beside `json_object` is llama.cpp's way to name one."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: Object | None = None


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """vLLM's way to say what an answer has to match: exactly one of these fields."""

    json: Schema | None = None
    json_object: bool | None = None
    regex: Grammar | None = None
    choice: Alternatives | None = None
    grammar: Grammar | None = None


class StructuredBody(Body):
    """The body of a request whose answer may have to match something."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: Grammar | None = None
    guided_choice: Alternatives | None = None
    guided_grammar: Grammar | None = None


def structure(body: StructuredBody) -> Structure | None:
    """What the answer has to match; None for any text. Raises `BadRequest` for two demands at once."""
    demands = list(_demands(body))
    if len(demands) > 1:
        first, second = (demand.field for demand in demands[:2])
        raise field_error(second.partition(".")[0], f"there is {first} already; send one of them")
    for demand in demands:
        check_json(demand.value, demand.field)
        return demand
    return None


def _demands(body: StructuredBody) -> Iterator[Structure]:
    if body.response_format and (demand := _from_format(body.response_format)):
        yield demand
    if outputs := body.structured_outputs:
        demands = list(
            _named(outputs.json, outputs.regex, outputs.choice, outputs.grammar, "structured_outputs.")
        )
        if outputs.json_object:
            demands.append(Structure("json_object", "structured_outputs.json_object"))
        if not demands:
            raise field_error(
                "structured_outputs", "one of json, json_object, regex, choice, grammar must be there"
            )
        yield from demands
    yield from _named(body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar, "guided_")


def _named(
    schema: str | dict[str, Any] | None,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
    prefix: str,
) -> Iterator[Structure]:
    if schema is not None:
        place = f"{prefix}json"
        yield Structure("json_schema", place, _schema(schema, place))
    if regex is not None:
        yield Structure("regex", f"{prefix}regex", regex)
    if choice is not None:
        yield Structure("choice", f"{prefix}choice", choice)
    if grammar is not None:
        yield Structure("grammar", f"{prefix}grammar", grammar)


def _from_format(form: ResponseFormat) -> Structure | None:
    """A schema that is left out stands for any object, as in OpenAI's API."""
    if form.type == "text":
        return None
    if form.type == "json_schema" and form.json_schema is None:
        raise field_error("response_format.json_schema", "is missing")
    schema = form.json_schema.schema if form.json_schema and form.type == "json_schema" else form.schema
    return Structure("json_object" if schema is None else "json_schema", "response_format", schema)


def _schema(schema: str | dict[str, Any], place: str) -> dict[str, Any]:
    try:
        read = json.loads(schema) if isinstance(schema, str) else schema
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise field_error(place, "must be a JSON schema: an object, or its JSON as a string")
    return read
