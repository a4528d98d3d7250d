"""With tools and a structure, an answer is either calls or the structure, whatever the model."""

import json
import re
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from control_plane.api.text.request import Structure, ToolUse
from tests.support.api.tool_answers import Answers
from tests.support.models import tool_models

ARGUMENTS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 5},
        "days": {"$ref": "#/$defs/days"},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
TOOLS: tuple[Any, ...] = (
    {"type": "function", "function": {"name": "weather", "parameters": ARGUMENTS}},
    {"type": "function", "function": {"name": "time"}},
)
AUTO = ToolUse(TOOLS)
PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Bo"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name"],
    "additionalProperties": False,
}
NUMBERS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3}
STRUCTURES = [
    Structure("json_schema", "response_format", PERSON),
    Structure("json_schema", "response_format", NUMBERS),
    Structure("regex", "guided_regex", "[a-z]{2,5}"),
    Structure("choice", "guided_choice", ["yes", "no", "<tool", "[TOOL"]),
    # Its rules have the names of the calls' own.
    Structure(
        "grammar", "guided_grammar", 'start: calls ["b"] call\ncalls: "x" | "{"\ncall: /[0-9]/\n%ignore / /'
    ),
    Structure("grammar", "guided_grammar", 'root ::= "a" | "}"'),
]
KINDS = [f"{structure.kind}-{number}" for number, structure in enumerate(STRUCTURES)]
PLAIN = '{"name": "time", "arguments": {}}'
HERMES = f"<tool_call>\n{PLAIN}\n</tool_call>"
CODER = "<tool_call>\n<function=time>\n</function>\n</tool_call>"
MISTRAL = "[TOOL_CALLS]time[ARGS]{}"
CALLS = {
    tool_models.QWEN3: ("<tool_call>", HERMES, f"{HERMES}\n{HERMES}"),
    tool_models.QWEN3_CODER: ("<tool_call>", CODER, f"{CODER}\n{CODER}"),
    tool_models.MISTRAL: ("[TOOL_CALLS]", f"[TOOL_CALLS][{PLAIN}]", f"[TOOL_CALLS][{PLAIN}, {PLAIN}]"),
    tool_models.MISTRAL_NEW: ("[TOOL_CALLS]", MISTRAL, MISTRAL * 2),
    tool_models.PLAIN: ('{"name": "time"', PLAIN, f"{PLAIN}\n{PLAIN}"),
}
"""For each format, the beginning of a call, a call, and two."""
NAMES = ["hermes", "qwen_coder", "mistral", "mistral_new", "plain"]


def matches(structure: Structure, text: str) -> bool:
    match structure.kind:
        case "json_schema":
            jsonschema.validate(json.loads(text), structure.value)
            return True
        case "regex":
            return re.fullmatch(structure.value, text) is not None
        case "choice":
            return text in structure.value
    return re.fullmatch(r"[x{] *b? *[0-9]|[a}]", text) is not None


def check_calls(calls: list[tuple[str, Any]]) -> None:
    assert calls
    for name, arguments in calls:
        assert name in ("weather", "time")
        jsonschema.validate(arguments, ARGUMENTS if name == "weather" else {"maxProperties": 0})


@pytest.mark.parametrize("template", list(CALLS), ids=NAMES)
@pytest.mark.parametrize("structure", STRUCTURES, ids=KINDS)
def test_a_model_that_knows_nothing_calls_or_answers(template: str, structure: Structure) -> None:
    answers = Answers(template)
    for seed in range(8):
        # Qwen3-Coder's strings are bounded by nothing.
        use = replace(AUTO, tools=TOOLS[1:] if template == tool_models.QWEN3_CODER else TOOLS)
        written = answers.random_text(use, structure, seed)
        _, text, calls, reason = answers.message(written, use, structure=structure)
        if reason == "tool_calls":
            assert text == ""
            check_calls(calls)
        else:
            assert (calls, reason) == ([], "stop")
            assert matches(structure, text), text


@pytest.mark.parametrize("template", list(CALLS), ids=NAMES)
@pytest.mark.parametrize("structure", STRUCTURES[:4], ids=KINDS[:4])
def test_the_beginning_decides(template: str, structure: Structure) -> None:
    answers = Answers(template)
    use = replace(AUTO, tools=TOOLS[1:], parallel=False)
    begin = CALLS[template][0]
    written = answers.random_text(use, structure, 1, begin)
    assert answers.message(written, use, structure=structure)[1:] == ("", [("time", {})], "tool_calls")


@pytest.mark.parametrize("template", list(CALLS), ids=NAMES)
def test_calls_and_the_structure_do_not_mix(template: str) -> None:
    answers, structure = Answers(template), STRUCTURES[0]
    begin, call, two = CALLS[template]
    person = '{"name": "Ann", "age": 5}'
    for right in (call, person, '{\n  "name":"Bo"\n}'):
        assert answers.accepts(right, AUTO, structure)
    for wrong in ("", "Hello", begin, f"{call}\n{person}", f"{person}\n{call}", person.replace("5", "100")):
        assert not answers.accepts(wrong, AUTO, structure)
    assert answers.accepts(two, AUTO, structure)
    assert not answers.accepts(two, replace(AUTO, parallel=False), structure)


@pytest.mark.parametrize(
    ("template", "thought"),
    [
        (tool_models.QWEN3, "<think>\nSo\n</think>\n\n"),
        (tool_models.QWEN3_THINKING, "So\n</think>\n\n"),
    ],
    ids=["opens", "is_opened"],
)
def test_the_model_may_think_before_either(template: str, thought: str) -> None:
    answers, structure = Answers(template), STRUCTURES[0]
    person = '{"name": "Ann"}'
    assert answers.accepts(thought + HERMES, AUTO, structure)
    assert answers.accepts(thought + person, AUTO, structure)
    assert not answers.accepts(thought, AUTO, structure)
    called = answers.message(thought + HERMES, AUTO, structure=structure)
    assert called == ("So", "", [("time", {})], "tool_calls")
    assert answers.message(thought + person, AUTO, structure=structure) == ("So", person, [], "stop")


@pytest.mark.parametrize("template", list(CALLS), ids=NAMES)
def test_a_structure_keeps_a_call_within_its_text(template: str) -> None:
    written = json.dumps({"a": CALLS[template][1]}).replace("\\n", "")
    structure = Structure("json_object", "response_format")
    message = Answers(template).message(written, AUTO, structure=structure, skip_special_tokens=False)
    assert message == ("", written, [], "stop")


@pytest.mark.parametrize("choice", ["required", "time"])
def test_an_answer_that_has_to_call_has_no_structure(choice: str) -> None:
    answers, use = Answers(tool_models.QWEN3), ToolUse(TOOLS, choice)
    assert answers.accepts(HERMES, use, STRUCTURES[0])
    assert not answers.accepts('{"name": "Ann"}', use, STRUCTURES[0])
    thinking = f"<think>\nSo\n</think>\n\n{HERMES}"
    assert answers.message(thinking, use, structure=STRUCTURES[0])[:3] == ("So", "", [("time", {})])
