"""The tools of a chat, as OpenAI's API declares them."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from control_plane.api.bodies.reading import field_error
from control_plane.api.bodies.values import Object, Text
from control_plane.api.text import chats
from control_plane.api.text.request import ToolUse

MAX_TOOLS = 128


class Function(Struct):
    """A function that an answer may call."""

    name: Text
    description: Text | None = None
    parameters: Object | None = None
    strict: bool | None = None
    """Accepted for compatibility; it has no effect."""


class Tool(Struct):
    """A tool. Only functions are supported."""

    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Struct):
    """The name of a function."""

    name: Text


class NamedTool(Struct):
    """The tool that an answer must call."""

    type: Literal["function"]
    function: NamedFunction


Tools = Annotated[
    list[Annotated[Tool, Meta(description="an object")]],
    Meta(max_length=MAX_TOOLS, description=f"a list of at most {MAX_TOOLS} tools"),
]
ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedTool,
    Meta(
        description='"none", "auto", "required", or {"type": "function", "function": {"name": NAME}}',
    ),
]


def template_tools(tools: list[Tool]) -> list[dict[str, Any]] | None:
    """The tools as templates read them; None without tools. Raises `BadRequest`."""
    made = {
        f"tools[{index}].function.name": chats.function_tool(
            tool.function.name, tool.function.description, tool.function.parameters
        )
        for index, tool in enumerate(tools)
    }
    return chats.checked_tools(made) or None


def tool_use(tools: list[dict[str, Any]] | None, choice: ToolChoice | None, parallel: bool) -> ToolUse | None:
    """How an answer may call these tools; None if it may not. Raises `BadRequest`."""
    if choice == "none":
        return None
    wanted = choice.function.name if isinstance(choice, NamedTool) else choice or "auto"
    if not tools and wanted != "auto":
        raise field_error("tool_choice", "there are no tools")
    return chats.tool_use(tools or [], wanted, parallel, named=isinstance(choice, NamedTool))


def ignored_in_tools(tools: list[dict[str, Any]]) -> Iterator[str]:
    """The fields of valid tools that have no effect."""
    for tool in tools:
        yield from (f"tools.{name}" for name in tool.keys() - Tool.__struct_fields__)
        yield from (f"tools.function.{name}" for name in tool["function"].keys() - Function.__struct_fields__)
