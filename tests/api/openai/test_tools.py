"""Tools and the choice among them are read as OpenAI's API defines them."""

from typing import Any

import pytest

from control_plane.api.text.request import Chat, GenerationRequest, ToolUse
from control_plane.errors import BadRequest
from tests.support.api.openai_bodies import chat

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "a", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "get-time", "strict": True}}
TEMPLATE_TIME = {
    "type": "function",
    "function": {"name": "get-time", "parameters": {"type": "object", "properties": {}}},
}


def shown(request: GenerationRequest) -> list[dict[str, Any]] | None:
    """The tools that the template sees."""
    (prompt,) = request.prompts
    assert isinstance(prompt, Chat)
    return prompt.tools


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("fields", "use"),
    [
        ({}, ("auto", True)),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, ("auto", False)),
        ({"tool_choice": "required"}, ("required", True)),
        ({"tool_choice": named("get_weather")}, ("get_weather", True)),
    ],
)
def test_the_choice(fields: dict[str, Any], use: tuple[str, bool]) -> None:
    request = chat(tools=[WEATHER, TIME], **fields)
    assert shown(request) == [WEATHER, TEMPLATE_TIME]
    assert request.tool_use == ToolUse((WEATHER, TEMPLATE_TIME), *use)
    assert request.ignored_fields == ()


def test_none_hides_the_tools() -> None:
    request = chat(tools=[WEATHER], tool_choice="none")
    assert (shown(request), request.tool_use) == (None, None)


@pytest.mark.parametrize(
    "fields", [{}, {"tools": []}, {"tools": None}, {"tool_choice": "auto"}, {"tool_choice": "none"}]
)
def test_no_tools(fields: dict[str, Any]) -> None:
    assert chat(**fields) == chat()
    assert chat().tool_use is None


def tool(name: Any = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


@pytest.mark.parametrize(
    ("tools", "place"),
    [
        ({}, "tools"),
        (["a"], "tools[0]"),
        ([{}], "tools[0].function"),
        ([{"type": "custom", "function": {"name": "f"}}], "tools[0].type"),
        ([{"type": "web_search", "function": {"name": "f"}}], "tools[0].type"),
        ([tool(5)], "tools[0].function.name"),
        ([tool("")], "tools[0].function.name"),
        ([tool("a b")], "tools[0].function.name"),
        ([tool("a\n")], "tools[0].function.name"),
        ([tool("x" * 129)], "tools[0].function.name"),
        ([tool("required")], "tools[0].function.name"),
        ([tool("f"), tool("f")], "tools[1].function.name"),
        ([tool(description=5)], "tools[0].function.description"),
        ([tool(description="\ud800")], "tools[0].function.description"),
        ([tool(parameters=[])], "tools[0].function.parameters"),
        ([tool(strict="yes")], "tools[0].function.strict"),
        ([tool(parameters={"\ud800": 1})], "tools"),
        ([tool(parameters={"maximum": 1 << 70})], "tools"),
        ([tool(f"f{number}") for number in range(129)], "tools"),
        ([tool(description="x" * (512 << 10))], "tools"),
    ],
)
def test_wrong_tools(tools: Any, place: str) -> None:
    with pytest.raises(BadRequest) as refused:
        chat(tools=tools)
    assert str(refused.value).startswith(f"{place}: ")
    assert refused.value.param == "tools"


def test_how_deep_parameters_may_be() -> None:
    def nested(depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {}
        for _ in range(depth - 1):
            schema = {"items": schema}
        return schema

    # The list of tools, a tool and its function are around the parameters.
    deepest = tool(parameters=nested(61))
    assert shown(chat(tools=[deepest])) == [deepest]
    for depth in (62, 400, 900):
        with pytest.raises(BadRequest, match="inside each other"):
            chat(tools=[tool(parameters=nested(depth))])


@pytest.mark.parametrize(
    "choice",
    [
        "any",
        5,
        [],
        {},
        {"type": "function"},
        {"type": "allowed_tools"},
        named("other"),
        named("auto"),
        {"type": "function", "function": {}},
    ],
)
def test_wrong_choices(choice: Any) -> None:
    with pytest.raises(BadRequest) as refused:
        chat(tools=[WEATHER], tool_choice=choice)
    assert str(refused.value.param).split(".")[0] == "tool_choice"


@pytest.mark.parametrize("choice", ["required", named("get_weather")])
def test_a_choice_without_tools(choice: Any) -> None:
    with pytest.raises(BadRequest, match="tool_choice: there are no tools"):
        chat(tool_choice=choice)


def test_fields_without_effect_are_named() -> None:
    other = {**WEATHER, "cache_control": {}, "function": {**TIME["function"], "x": 1}}  # type: ignore[dict-item]
    assert chat(tools=[other]).ignored_fields == ("tools.cache_control", "tools.function.x")
