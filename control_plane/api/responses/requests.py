"""Turns the body of /v1/responses into a request for the engine."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from control_plane.api.bodies.json_values import check_json
from control_plane.api.bodies.reading import field_error, ignored_fields, read_body, without_nulls
from control_plane.api.responses import wire
from control_plane.api.text.chats import (
    NOT_TEXT,
    ChatBuilder,
    checked_tools,
    function_tool,
    json_arguments,
    template_role,
    tool_call,
    tool_use,
)
from control_plane.api.text.request import Chat, GenerationRequest, Sampling, Structure, ToolUse

_STATELESS = "this server stores no responses: send the whole input"


@dataclass(frozen=True)
class ResponseRequest(GenerationRequest):
    """A request of the Responses API."""

    repeated: dict[str, Any] = field(default_factory=dict)
    """What the answer repeats of the request, as JSON."""


def parse_response(body: Any) -> ResponseRequest:
    """Read a decoded body. Raises `BadRequest`, whose `param` is the field at fault."""
    asked = read_body(_normal(body), wire.ResponseBody)
    if asked.previous_response_id is not None:
        raise field_error("previous_response_id", _STATELESS)
    callable_tools = _callable_tools(asked)
    chat = Chat(
        _messages(asked),
        tools=callable_tools or None,
        template_variables=_template_variables(asked.reasoning),
    )
    return ResponseRequest(
        prompts=(chat,),
        max_tokens=asked.max_output_tokens,
        sampling=Sampling(temperature=asked.temperature, top_p=asked.top_p),
        stream=asked.stream,
        ignored_fields=tuple(ignored_fields(body, wire.ResponseBody)),
        user=asked.user,
        structure=_structure(asked.text.format),
        tool_use=_tool_use(callable_tools, asked),
        repeated=_repeated(asked),
    )


def _normal(body: object) -> object:
    """Add the types that items may leave out, and remove fields that are null."""
    if not isinstance(body, dict):
        return body
    fields = dict(body)
    for name in ("reasoning", "text"):
        fields[name] = without_nulls(fields.get(name))
    if isinstance(items := fields.get("input"), list):
        fields["input"] = [_normal_item(item) for item in items]
    return fields


def _normal_item(item: object) -> object:
    item = without_nulls(item)
    return {"type": "message", **item} if isinstance(item, dict) and "role" in item else item


def _messages(asked: wire.ResponseBody) -> list[dict[str, Any]]:
    chat = ChatBuilder()
    if asked.instructions:
        chat.add("system", asked.instructions)
    if isinstance(asked.input, str):
        chat.add("user", asked.input)
        return chat.messages()
    for place, item in enumerate(asked.input):
        _add(chat, item, f"input[{place}]")
    if not (messages := chat.messages()):
        raise field_error("input", "has no message")
    return messages


def _add(chat: ChatBuilder, item: wire.Item, path: str) -> None:
    match item:
        case wire.MessageItem():
            chat.add(template_role(item.role), _text(item.content))
        case wire.ReasoningItem():
            parts = item.content or item.summary
            chat.add_reasoning("".join(part.text for part in parts))
        case wire.FunctionCall():
            try:
                chat.add_call(tool_call(item.call_id, item.name, json_arguments(item.arguments)))
            except ValueError as error:
                raise field_error(f"{path}.arguments", str(error)) from error
        case wire.FunctionCallOutput():
            chat.add("tool", _text(item.output), tool_call_id=item.call_id)
        case wire.ItemReference():
            raise field_error(path, _STATELESS)


def _text(content: wire.Content | wire.Output) -> str:
    if isinstance(content, str):
        return content
    return "".join(map(_part_text, content))


def _part_text(part: wire.Part | wire.OutputPart) -> str:
    match part:
        case wire.Refusal():
            return part.refusal
        case wire.InputImage() | wire.InputFile():
            return NOT_TEXT
    return part.text


def _template_variables(reasoning: wire.Reasoning) -> dict[str, Any]:
    if reasoning.effort is None:
        return {}
    # Templates of models that can do without thinking ask for this variable.
    quiet = {"enable_thinking": False} if reasoning.effort == "none" else {}
    return {"reasoning_effort": reasoning.effort, **quiet}


def _callable_tools(asked: wire.ResponseBody) -> list[dict[str, Any]]:
    choice, allowed = asked.tool_choice, None
    if isinstance(choice, wire.ToolChoice) and choice.type == "allowed_tools":
        allowed = {tool.name for tool in choice.tools}
    tools = checked_tools(
        {
            f"tools[{index}].name": function_tool(tool.name, tool.description, tool.parameters)
            for index, tool in enumerate(asked.tools)
            if tool.type == "function"
        }
    )
    if choice == "none":
        return []
    return [tool for tool in tools if allowed is None or tool["function"]["name"] in allowed]


def _tool_use(tools: list[dict[str, Any]], asked: wire.ResponseBody) -> ToolUse | None:
    choice = asked.tool_choice
    named = isinstance(choice, wire.ToolChoice) and choice.type == "function"
    wanted = choice if isinstance(choice, str) else choice.name if named else choice.mode
    return tool_use(tools, wanted, asked.parallel_tool_calls, named)


def _structure(form: wire.TextFormat) -> Structure | None:
    if form.type == "text":
        return None
    if form.type == "json_schema":
        if form.schema is None:
            raise field_error("text.format.schema", "is missing")
        check_json(form.schema, "text.format.schema")
        return Structure("json_schema", "text.format.schema", form.schema)
    return Structure("json_object", "text.format")


def _repeated(asked: wire.ResponseBody) -> dict[str, Any]:
    return {
        "background": False,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata,
        "parallel_tool_calls": asked.parallel_tool_calls,
        "previous_response_id": None,
        "reasoning": {"effort": asked.reasoning.effort, "summary": None},
        "temperature": asked.temperature,
        "text": {"format": without_nulls(msgspec.to_builtins(asked.text.format))},
        "tool_choice": _repeated_choice(asked.tool_choice),
        "tools": [msgspec.to_builtins(tool) for tool in asked.tools if tool.type == "function"],
        "top_p": asked.top_p,
        "truncation": asked.truncation,
        "user": asked.user,
    }


def _repeated_choice(choice: str | wire.ToolChoice) -> Any:
    if isinstance(choice, str):
        return choice
    if choice.type == "function":
        return {"type": "function", "name": choice.name}
    tools = [{"type": tool.type, "name": tool.name} for tool in choice.tools]
    return {"type": choice.type, "mode": choice.mode, "tools": tools}
