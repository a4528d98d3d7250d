"""Checks a chat and encodes it as JSON, for the process that renders it."""

import json
from typing import Any

from control_plane.api.bodies.json_values import MAX_DEPTH, is_deeper
from control_plane.api.text.request import Chat
from control_plane.api.text.worker.messages import EncodeChat
from control_plane.errors import BadRequest

MAX_BYTES = 16 << 20


def chat_request(chat: Chat, template: str) -> EncodeChat:
    """The request to render the chat with a template.

    Raises `BadRequest` for values that are nested too deeply or too large, and for text that is not Unicode.
    """
    variables = {
        **chat.template_variables,
        "messages": chat.messages,
        "tools": chat.tools,
        "documents": chat.documents,
        # If the answer continues the last message, it must not begin a new one.
        "add_generation_prompt": chat.add_generation_prompt and not chat.continue_final_message,
    }
    return EncodeChat(template, _json(variables), chat.continue_final_message)


def utf8(text: str) -> bytes:
    """The text in UTF-8. Raises `BadRequest` for half of a surrogate pair, which JSON can escape."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"the text is not Unicode: {error}") from error


def _json(variables: dict[str, Any]) -> bytes:
    if is_deeper(variables, MAX_DEPTH):
        raise BadRequest(f"messages: more than {MAX_DEPTH} lists and objects within each other", "messages")
    data = utf8(json.dumps(variables, ensure_ascii=False, separators=(",", ":")))
    if len(data) > MAX_BYTES:
        raise BadRequest(f"messages: they have {len(data)} bytes, and {MAX_BYTES} are allowed", "messages")
    return data
