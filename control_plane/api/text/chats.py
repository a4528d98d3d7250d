"""Builds chats, as templates read them, and their tools, from what clients of each API send."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from control_plane.api.bodies.json_values import check_json
from control_plane.api.bodies.reading import field_error
from control_plane.api.text.request import ToolUse

Message = dict[str, Any]
_TEMPLATE_ROLES = {"developer": "system"}
NOT_TEXT = "[The tool returned an image or a file here. This model reads only text.]"
"""What a chat has in place of results of tools that are not text.

The model has asked for them. An error would end the chat, for agents send every result again each time.
"""
_NO_PARAMETERS = {"type": "object", "properties": {}}
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_RESERVED = ("none", "auto", "required")
"""Values of OpenAI's `tool_choice`, which a tool's name must not look like."""


def template_role(role: str) -> str:
    """A role by the name that chat templates know it by."""
    return _TEMPLATE_ROLES.get(role, role)


def function_tool(name: str, description: str | None, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """A tool as in `Chat.tools`."""
    function: dict[str, Any] = {"name": name}
    if description is not None:
        function["description"] = description
    return {"type": "function", "function": {**function, "parameters": dict(parameters or _NO_PARAMETERS)}}


def checked_tools(tools: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools of a request. Each key is the place of a tool's name, for errors. Raises `BadRequest`."""
    names: set[str] = set()
    for place, tool in tools.items():
        name = tool["function"]["name"]
        if not _TOOL_NAME.fullmatch(name):
            raise field_error(place, "must be 1 to 128 letters, digits, underscores and hyphens")
        if name in _RESERVED:
            raise field_error(place, f"a tool cannot be named {name!r}")
        if name in names:
            raise field_error(place, f"there is another tool {name!r}")
        names.add(name)
    made = list(tools.values())
    check_json(made, "tools")
    return made


def tool_use(
    tools: Sequence[Mapping[str, Any]], choice: str, parallel: bool, named: bool = False
) -> ToolUse | None:
    """How an answer may call these tools: see `ToolUse`; None without tools.

    `named` says that `choice` is a tool's name. Raises `BadRequest` for a choice that the tools do not allow.
    """
    if named and choice not in [tool["function"]["name"] for tool in tools]:
        raise field_error("tool_choice", f"there is no tool {choice[:80]!r}")
    if not tools:
        if choice == "required":
            raise field_error("tool_choice", "there is no tool to call")
        return None
    return ToolUse(tuple(tools), choice, parallel)


def tool_call(call_id: str | None, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A call as in a message's `tool_calls`."""
    identified = {} if call_id is None else {"id": call_id}
    return {**identified, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def json_arguments(text: str) -> dict[str, Any]:
    """The arguments of a call from their JSON. Those of a function without parameters may be "".

    Raises `ValueError` for other text.
    """
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError("must be the JSON of an object, as a string")
    return arguments


class ChatBuilder:
    """Collects the messages of a chat. What an assistant says and does in a row is one message."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def add(self, role: str, content: str, **fields: Any) -> None:
        """Add a message. An assistant's joins a message that has only reasoning so far."""
        if role == "assistant" and self._is_assistant() and self._last.keys() == _ONLY_REASONING:
            self._last["content"] = content
        else:
            self._messages.append({"role": role, "content": content, **fields})

    def add_reasoning(self, text: str) -> None:
        """Add what the assistant thinks before its next message or call."""
        if self._is_assistant() and self._last.keys() == _ONLY_REASONING:
            self._last["reasoning_content"] += text
        else:
            self._messages.append({"role": "assistant", "reasoning_content": text})

    def add_call(self, call: dict[str, Any]) -> None:
        """Add a call of a tool."""
        if not self._is_assistant():
            self._messages.append({"role": "assistant"})
        self._last.setdefault("content", "")
        self._last.setdefault("tool_calls", []).append(call)

    def messages(self) -> list[Message]:
        """All messages. Those of the system at the beginning are one: many templates take no more.

        Reasoning without a message or a call after it is left out.
        """
        messages = [message for message in self._messages if "content" in message]
        leading = 0
        while leading < len(messages) and messages[leading]["role"] == "system":
            leading += 1
        if leading > 1:
            text = "\n\n".join(message["content"] for message in messages[:leading])
            messages[:leading] = [{"role": "system", "content": text}]
        return messages

    @property
    def _last(self) -> Message:
        return self._messages[-1]

    def _is_assistant(self) -> bool:
        return bool(self._messages) and self._last["role"] == "assistant"


_ONLY_REASONING = {"role", "reasoning_content"}
