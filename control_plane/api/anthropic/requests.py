"""Turns the bodies of /v1/messages into requests for the engine.

Every parser takes a decoded JSON body, and raises `BadRequest`, whose `param` is the field at fault.
"""

from collections.abc import Sequence
from typing import Any

from control_plane.api.anthropic import wire
from control_plane.api.bodies.json_values import check_json
from control_plane.api.bodies.reading import field_error, ignored_fields, read_body
from control_plane.api.text.chats import (
    NOT_TEXT,
    ChatBuilder,
    checked_tools,
    function_tool,
    tool_call,
    tool_use,
)
from control_plane.api.text.request import (
    Chat,
    GenerationRequest,
    Sampling,
    Structure,
    TokenizeRequest,
    ToolUse,
)


def parse_message(body: Any) -> GenerationRequest:
    """Read the body of /v1/messages.

    Its `metadata.user_id` names no tenant: agents send there what identifies a session.
    """
    asked = read_body(body, wire.MessageBody)
    tools = _tools(asked)
    return GenerationRequest(
        prompts=(_chat(asked, tools),),
        max_tokens=asked.max_tokens,
        stop=tuple(asked.stop_sequences),
        sampling=Sampling(
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=None if asked.top_k is None else max(asked.top_k, 0),
        ),
        stream=asked.stream,
        structure=_structure(asked),
        tool_use=_tool_use(asked, tools),
        ignored_fields=tuple(ignored_fields(body, wire.MessageBody)),
    )


def parse_count(body: Any) -> TokenizeRequest:
    """Read the body of /v1/messages/count_tokens."""
    asked = read_body(body, wire.CountBody)
    return TokenizeRequest(
        _chat(asked, _tools(asked)), ignored_fields=tuple(ignored_fields(body, wire.CountBody))
    )


def _chat(asked: wire.CountBody, tools: list[dict[str, Any]]) -> Chat:
    chat = ChatBuilder()
    if system := _text(asked.system):
        chat.add("system", system)
    for place, message in enumerate(asked.messages):
        _add(chat, message, f"messages[{place}].content")
    messages = chat.messages()
    if not any(message["role"] != "system" for message in messages):
        raise field_error("messages", "there is nothing to answer")
    # The answer continues a last message of the assistant's: "prefill".
    continued = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    return Chat(
        messages,
        tools=tools or None,
        template_variables=_template_variables(asked),
        add_generation_prompt=not continued,
        continue_final_message=continued,
    )


def _add(chat: ChatBuilder, message: wire.Message, path: str) -> None:
    """Add a message's blocks. Results of tools are messages of their own.

    Claude Code sends a document that a tool has read beside the result.
    """
    if isinstance(message.content, str):
        chat.add(message.role, message.content)
        return
    has_results = any(isinstance(block, wire.ToolResultBlock) for block in message.content)
    text: list[str] = []

    def add_text() -> None:
        if text:
            chat.add(message.role, "".join(text))
            text.clear()

    for block in message.content:
        match block:
            case wire.TextBlock():
                text.append(block.text)
            case wire.ThinkingBlock():
                add_text()
                chat.add_reasoning(block.thinking)
            case wire.ToolUseBlock():
                add_text()
                chat.add_call(tool_call(block.id, block.name, block.input))
            case wire.ToolResultBlock():
                add_text()
                chat.add("tool", _text(block.content), tool_call_id=block.tool_use_id)
            case wire.ImageBlock() | wire.DocumentBlock():
                if not has_results:
                    kind = block.__struct_config__.tag
                    raise field_error(path, f"{kind!r} is not supported: this model reads only text")
                text.append(NOT_TEXT)
    add_text()


def _text(content: str | Sequence[wire.TextBlock | wire.Unreadable]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(block.text if isinstance(block, wire.TextBlock) else NOT_TEXT for block in content)


def _template_variables(asked: wire.CountBody) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    if asked.thinking is not None:
        variables["enable_thinking"] = asked.thinking.type != "disabled"
    if asked.output_config.effort is not None:
        variables["reasoning_effort"] = asked.output_config.effort
    return variables


def _structure(asked: wire.MessageBody) -> Structure | None:
    for field, form in (
        ("output_config.format", asked.output_config.format),
        ("output_format", asked.output_format),
    ):
        if form is not None:
            place = f"{field}.schema"
            check_json(form.schema, place)
            return Structure("json_schema", place, form.schema)
    return None


def _tools(asked: wire.CountBody) -> list[dict[str, Any]]:
    tools = {
        f"tools[{index}].name": function_tool(tool.name, tool.description, tool.input_schema)
        for index, tool in enumerate(asked.tools)
        if tool.type in (None, "custom")
    }
    return checked_tools(tools) if asked.tool_choice.type != "none" else []


def _tool_use(asked: wire.CountBody, tools: list[dict[str, Any]]) -> ToolUse | None:
    choice = asked.tool_choice
    named = choice.type == "tool"
    wanted = choice.name if named else "required" if choice.type == "any" else "auto"
    return tool_use(tools, wanted, not choice.disable_parallel_tool_use, named)
