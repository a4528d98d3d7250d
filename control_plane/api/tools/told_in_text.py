"""Lists tools in the text of a chat, for models whose chat template does not show tools."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

from control_plane.api.text.request import Chat

_HOW = (
    "You can call these functions:\n{}\n"
    'To call one, answer only with JSON: {{"name": "FUNCTION", "arguments": {{...}}}}, one call a line. '
    "You will then get the results. Otherwise, answer in plain text."
)


def told_in_text(chat: Chat) -> Chat:
    """The chat with a list of its tools in its first message, and with calls and their results as text.

    Each message then has only text, and a role that every template knows.
    """
    tools = chat.tools or []
    if not tools and not any(_is_of_tools(message) for message in chat.messages):
        return chat
    messages = list(_as_text(chat.messages))
    if tools and messages:
        how = _HOW.format("\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools))
        first = messages[0]
        messages[0] = {**first, "content": f"{how}\n\n{first.get('content') or ''}"}
    return replace(chat, messages=messages, tools=None)


def _is_of_tools(message: Mapping[str, Any]) -> bool:
    return message["role"] == "tool" or bool(message.get("tool_calls"))


def _as_text(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The messages as text. Results in a row become one message: many templates want roles to alternate."""
    for is_result, group in groupby(messages, lambda message: message["role"] == "tool"):
        if is_result:
            results = (f"Result: {message.get('content') or ''}" for message in group)
            yield {"role": "user", "content": "\n".join(results)}
        else:
            yield from map(_with_calls, group)


def _with_calls(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return message
    lines = [message.get("content") or "", *(_call(call["function"]) for call in calls)]
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**others, "content": "\n".join(filter(None, lines))}


def _call(function: Mapping[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return json.dumps(call, ensure_ascii=False)
